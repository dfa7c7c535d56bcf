# SPDX-License-Identifier: Apache-2.0
"""All trace points except those of the QMP commands.

A point that QEMU also has, has QEMU's name. It prints names of exports, nodes and devices where
QEMU prints addresses of objects.
"""

from __future__ import annotations

from vhostblk.trace.point import point

# Block layer.
bdrv_open_common = point("bdrv_open_common", "node %s driver %s")
blk_root_attach = point("blk_root_attach", "blk %s node %s")
blk_root_detach = point("blk_root_detach", "blk %s node %s")
blk_drained_begin = point("blk_drained_begin", "blk %s")
blk_drained_end = point("blk_drained_end", "blk %s")

# Exports and devices.
blk_exp_start = point("blk_exp_start", "export %s node %s")
blk_exp_stop = point("blk_exp_stop", "export %s node %s")
vhost_user_blk_set_memory = point("vhost_user_blk_set_memory", "export %s queues %d")
virtio_blk_start_queue = point("virtio_blk_start_queue", "export %s queue %d %s")
virtio_blk_stop_queue = point("virtio_blk_stop_queue", "export %s queue %d")
virtio_blk_burst = point("virtio_blk_burst", "queue %d requests %d in flight %d")

# vhost-user.
vhost_user_connect = point("vhost_user_connect", "export %s")
vhost_user_disconnect = point("vhost_user_disconnect", "export %s")
vhost_user_read = point("vhost_user_read", "export %s msg %s (%d) size %d fds %d")
vhost_user_write = point("vhost_user_write", "export %s msg %s (%d) reply %d bytes failure %s")

# Character devices.
chr_socket_disconnect = point("chr_socket_disconnect", "chardev socket disconnect (%s)")
chr_socket_connect = point("chr_socket_connect", "chardev socket connect (%s): %s")

# Monitors.
handle_qmp_command = point("handle_qmp_command", "mon %s req: %s")
monitor_qmp_cmd_in_band = point("monitor_qmp_cmd_in_band", "%s")
monitor_qmp_cmd_out_of_band = point("monitor_qmp_cmd_out_of_band", "%s")
monitor_qmp_respond = point("monitor_qmp_respond", "mon %s resp: %s")
monitor_protocol_event_emit = point("monitor_protocol_event_emit", "event=%s data=%s")

# The process.
modules_loaded = point("modules_loaded", "%d modules")

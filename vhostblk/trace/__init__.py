# SPDX-License-Identifier: Apache-2.0
"""Trace points: places in the code that can print what happens.

    from vhostblk.trace import points as trace

    if trace.blk_root_attach.enabled:
        trace.blk_root_attach(backend.name, node.node_name)

A point that is off costs one attribute access. All points are declared in `points.py`, except those
of QMP commands, which are declared with the commands (`vhostblk.qmp.registry`). `-T` turns points
on (`options.py`). A line has QEMU's form with time stamps: `pid@seconds.microseconds:name text`.
"""

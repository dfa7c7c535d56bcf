# SPDX-License-Identifier: Apache-2.0
"""What a vhost-user-blk export offers to drivers: feature bits and the configuration space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.block.zones import ZoneModel, zone_limits
from vhostblk.schema.base import UNSET
from vhostblk.virtio_blk.features import Feature

if TYPE_CHECKING:
    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.schema.exports.vhost_user_blk import BlockExportOptionsVhostUserBlk

#: The queue size that QEMU's front-end uses unless told otherwise.
DEFAULT_QUEUE_SIZE = 128

_ALWAYS = (
    Feature.VERSION_1,
    Feature.RING_INDIRECT_DESC,
    Feature.RING_EVENT_IDX,
    Feature.RING_PACKED,
    Feature.SEG_MAX,
    Feature.BLK_SIZE,
    Feature.TOPOLOGY,
    Feature.FLUSH,
    Feature.CONFIG_WCE,
)


def device_features(options: BlockExportOptionsVhostUserBlk, backend: BlockBackend) -> int:
    """Return the features of a device, after its options and its disk."""
    # Not before clients may connect.
    from vhostblk.block.erase import eraser_of
    from vhostblk.block.lifetime import lifetime_of

    zoned = zone_limits(backend.node)
    offered = list(_ALWAYS)
    if options.num_queues > 1:
        offered.append(Feature.MQ)
    if zoned is not None:
        offered.append(Feature.ZONED)
    if options.writable:
        offered.append(Feature.WRITE_ZEROES)
        # Where zones must be reset, nothing is discarded.
        if zoned is None or zoned.model is not ZoneModel.HOST_MANAGED:
            offered.append(Feature.DISCARD)
        if zoned is None and eraser_of(backend.node) is not None:
            offered.append(Feature.SECURE_ERASE)
    else:
        offered.append(Feature.RO)
    storage = lifetime_of(backend.node)
    if storage is not None and storage.has_lifetime:
        offered.append(Feature.LIFETIME)
    return sum(feature.mask for feature in offered)


def configuration(options: BlockExportOptionsVhostUserBlk, backend: BlockBackend) -> bytes:
    """Return the configuration space as it is now."""
    from vhostblk.virtio_blk.config import DeviceProperties, encode_config

    limits = backend.limits
    return encode_config(
        DeviceProperties(
            size=backend.size,
            logical_block_size=options.logical_block_size,
            num_queues=options.num_queues,
            queue_size=DEFAULT_QUEUE_SIZE if options.queue_size is UNSET else options.queue_size,
            discard_granularity=limits.discard_granularity,
            optimal_transfer=limits.optimal_transfer,
            secure_erase=bool(device_features(options, backend) & Feature.SECURE_ERASE.mask),
            zoned=zone_limits(backend.node),
        ),
        write_cache=backend.enable_write_cache,
    )

# SPDX-License-Identifier: Apache-2.0
"""Virtio feature bits (VIRTIO 1.3, sections 5.2.3 and 6).

Not offered, although front-ends know them:

- IN_ORDER (QEMU 10 passes it on with `in_order=on`, Cloud Hypervisor always): buffers would have to
  be used in the order in which they became available, so that fast requests would wait for slow
  ones. What it saves is a few bytes of ring a request.
- RING_RESET (QEMU 10, `queue_reset`, on by default): QEMU's vhost-user-blk has nothing that would
  tell the back-end of a reset ring, nor does the vhost-user protocol. Offered, it would leave the
  back-end at work on a ring that the driver takes for stopped. Linux's virtio-blk never resets one.
- NOTIFICATION_DATA (Cloud Hypervisor; QEMU 10 only with devices that do without ioeventfd, which
  vhost-user needs): kicks come through an eventfd, which carries no data.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from vhostblk.block.zones import ZoneModel

if TYPE_CHECKING:
    from vhostblk.block.zones import ZonedLimits


class Feature(IntEnum):
    """The value is the bit's number."""

    SIZE_MAX = 1
    SEG_MAX = 2
    GEOMETRY = 4
    RO = 5
    BLK_SIZE = 6
    FLUSH = 9
    TOPOLOGY = 10
    CONFIG_WCE = 11
    MQ = 12
    DISCARD = 13
    WRITE_ZEROES = 14
    LIFETIME = 15
    SECURE_ERASE = 16
    ZONED = 17
    RING_INDIRECT_DESC = 28
    RING_EVENT_IDX = 29
    VERSION_1 = 32
    RING_PACKED = 34

    @property
    def mask(self) -> int:
        """The bit itself."""
        return 1 << self


def refusal(features: int, zoned: ZonedLimits | None) -> str | None:
    """Say why a driver that accepted these features can't use a disk; None: it can.

    VIRTIO 1.3, 5.2.5.2: what doesn't know of zones must not get at a host-managed disk.
    """
    if zoned is None or zoned.model is not ZoneModel.HOST_MANAGED or features & Feature.ZONED.mask:
        return None
    return "the driver didn't accept ZONED, as it has to for a host-managed disk"

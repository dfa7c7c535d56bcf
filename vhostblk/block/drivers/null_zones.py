# SPDX-License-Identifier: Apache-2.0
"""The zones of a null disk with the option `x-vhostblk-zoned`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.block import SECTOR
from vhostblk.block.errors import BlockError
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.zones import EmulatedZones, Zoned, ZonedLimits, ZoneModel, ZoneState
from vhostblk.schema.base import UNSET

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vhostblk.block.io.iovec import IoVec
    from vhostblk.block.zones import Zone, ZoneOp
    from vhostblk.schema.drivers.null import BlockdevNullZoned

#: A guest can make us allocate memory for each zone.
MAX_ZONES = 1 << 18

#: Zone sizes are reported in sectors, in 32 bits (VIRTIO 1.3, 5.2.4).
_MAX_ZONE_SIZE = (1 << 32) * SECTOR - 1


class NullZones(Zoned):
    """The zoned operations of a null disk; `wait` waits for its latency."""

    def __init__(self, zones: EmulatedZones, wait: Callable[[], Awaitable[None]]) -> None:
        self._zones = zones
        self._wait = wait

    @property
    def zoned(self) -> ZonedLimits:
        """The geometry and limits of the zones."""
        return self._zones.limits

    async def zone_report(self, offset: int, count: int) -> list[Zone]:
        """Return zones."""
        await self._wait()
        return self._zones.report(offset, count)

    async def zone_mgmt(self, op: ZoneOp, offset: int, length: int) -> None:
        """Manage zones."""
        self._zones.manage(op, offset, length)
        await self._wait()

    async def zone_append(
        self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE
    ) -> int:
        """Append to a zone."""
        place = self._zones.append(offset, iov.nbytes)
        await self._wait()
        return place


def make_zones(options: BlockdevNullZoned, size: int) -> EmulatedZones:
    """Create the zones of a disk of `size` bytes; raises BlockError."""
    limits = ZonedLimits(
        ZoneModel.HOST_MANAGED,
        zone_size=options.zone_size,
        max_open=options.max_open_zones,
        max_active=options.max_active_zones,
        max_append=_or(options.max_append_bytes, _or(options.zone_capacity, options.zone_size)),
        write_granularity=options.write_granularity,
    )
    _check_sizes(options, limits, size)
    count = -(-size // limits.zone_size)
    if count > MAX_ZONES:
        raise _invalid(f"the number of zones ({count}) exceeds {MAX_ZONES}")
    if options.conventional_zones > count:
        raise _invalid(f"conventional-zones must not exceed the number of zones ({count})")
    if 0 < limits.max_active < limits.max_open:
        raise _invalid("max-open-zones must not exceed max-active-zones")
    worn = dict.fromkeys(options.read_only_zones, ZoneState.READ_ONLY)
    worn |= dict.fromkeys(options.offline_zones, ZoneState.OFFLINE)
    for number in worn:
        if not options.conventional_zones <= number < count:
            raise _invalid(f"zone {number} is not a sequential zone")
    return EmulatedZones(
        size,
        limits,
        capacity=_or(options.zone_capacity, options.zone_size),
        conventional=options.conventional_zones,
        worn=worn,
    )


def _check_sizes(options: BlockdevNullZoned, limits: ZonedLimits, size: int) -> None:
    unit = limits.write_granularity
    if unit < SECTOR or unit & (unit - 1) or unit >= 1 << 32:
        raise _invalid(f"write-granularity must be a power of two of at least {SECTOR}")
    if not 0 < limits.zone_size <= _MAX_ZONE_SIZE:
        raise _invalid(f"zone-size must be between 1 and {_MAX_ZONE_SIZE}")
    if not 0 < _or(options.zone_capacity, limits.zone_size) <= limits.zone_size:
        raise _invalid("zone-capacity must be between 1 and zone-size")
    if not 0 <= limits.max_append <= _or(options.zone_capacity, limits.zone_size):
        raise _invalid("max-append-bytes must be between 0 and the zones' capacity")
    lengths = {
        "size": size,
        "zone-size": limits.zone_size,
        "zone-capacity": _or(options.zone_capacity, 0),
        "max-append-bytes": limits.max_append,
    }
    for name, length in lengths.items():
        if length % unit:
            raise _invalid(f"{name} must be a multiple of write-granularity ({unit})")


def _or(given: object, default: int) -> int:
    return default if given is UNSET else given  # type: ignore[return-value]


def _invalid(reason: str) -> BlockError:
    return BlockError(f"x-vhostblk-zoned: {reason}")

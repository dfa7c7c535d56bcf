# SPDX-License-Identifier: Apache-2.0
"""Zones of host-managed storage: their terms, and an emulated zoned disk.

A sequential zone is written from its start to the end of its capacity, each write at its write
pointer, and reset before it is written again. A disk may limit the number of open zones and of
active ones (open or closed). An implicitly open zone is closed when another one must be opened. See
VIRTIO 1.3, section 5.2.6, which follows ZBC and NVMe ZNS. The numbers are VIRTIO's, Linux's
(`<linux/blkzoned.h>`) and QEMU's (`BLK_Z_*`, `BLK_ZT_*`, `BLK_ZS_*`, `BLK_ZO_*`).

`EmulatedZones` is the state machine, without I/O: tables first, rules below. Offsets and lengths
are in bytes.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from enum import Enum, IntEnum, auto
from typing import TYPE_CHECKING

import msgspec

from vhostblk.block import SECTOR
from vhostblk.block.errors import BlockError
from vhostblk.block.io.flags import WriteFlags

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vhostblk.block.graph.node import BlockNode
    from vhostblk.block.io.iovec import IoVec


class ZoneModel(IntEnum):
    """The rule for writes to sequential zones."""

    #: At the write pointer only.
    HOST_MANAGED = 1
    #: At the write pointer preferably.
    HOST_AWARE = 2


class ZoneType(IntEnum):
    """The type of a zone, which says how it may be written."""

    CONVENTIONAL = 1
    SEQUENTIAL_REQUIRED = 2
    SEQUENTIAL_PREFERRED = 3


class ZoneState(IntEnum):
    """The state of a zone."""

    #: Conventional: no write pointer.
    NOT_WP = 0
    EMPTY = 1
    IMPLICIT_OPEN = 2
    EXPLICIT_OPEN = 3
    CLOSED = 4
    READ_ONLY = 13
    FULL = 14
    OFFLINE = 15


class ZoneOp(Enum):
    """Operations on zones besides reads and writes."""

    OPEN = auto()
    CLOSE = auto()
    FINISH = auto()
    RESET = auto()
    #: Reset all zones that can be reset, whatever the range.
    RESET_ALL = auto()


class ZoneFault(Enum):
    """Reasons to refuse a request to a zone; the value is Linux's errno."""

    INVALID = errno.EINVAL
    #: A write is not at the write pointer, or violates the granularity.
    UNALIGNED = errno.EIO
    OPEN_RESOURCES = errno.ETOOMANYREFS
    ACTIVE_RESOURCES = errno.EOVERFLOW


class ZoneError(OSError):
    """A request violates a rule of the zone; `fault` is the reason."""

    def __init__(self, fault: ZoneFault, reason: str) -> None:
        super().__init__(fault.value, reason)
        self.fault = fault


class ZonedLimits(msgspec.Struct, frozen=True):
    """The zone geometry and limits of a node."""

    model: ZoneModel
    #: Size of all zones; the last one may be shorter.
    zone_size: int
    #: Maximum number of open zones, and of active zones; 0: no limit.
    max_open: int = 0
    max_active: int = 0
    #: Maximum length of an append; 0: not supported.
    max_append: int = 0
    #: Offset and length of writes to sequential zones are multiples of this.
    write_granularity: int = SECTOR


class Zone(msgspec.Struct, frozen=True):
    """A zone as reported; `write_pointer` is meaningless in states without one."""

    start: int
    length: int
    #: Number of writable bytes, from the start of the zone.
    capacity: int
    write_pointer: int
    type: ZoneType
    state: ZoneState


class Zoned(ABC):
    """The capability of a node with zones.

    The node's other I/O obeys the zones' rules, too; a violation raises ZoneError.
    """

    @property
    @abstractmethod
    def zoned(self) -> ZonedLimits:
        """The geometry and limits of the zones."""

    @abstractmethod
    async def zone_report(self, offset: int, count: int) -> list[Zone]:
        """Return at most `count` zones, from the one that contains `offset`."""

    @abstractmethod
    async def zone_mgmt(self, op: ZoneOp, offset: int, length: int) -> None:
        """Perform an operation on the zones of a range."""

    @abstractmethod
    async def zone_append(
        self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE
    ) -> int:
        """Write all of `iov` at the write pointer of the zone that begins at `offset`.

        Returns the offset of the data. Otherwise like `pwritev`.
        """


class TakesZonedChildren(ABC):
    """A node that keeps the order and alignment of its users' writes, as zoned children need."""

    @property
    @abstractmethod
    def takes_zoned_children(self) -> bool:
        """Whether the node accepts zoned children."""


def zones_of(node: BlockNode) -> Zoned | None:
    """Return a node's capability `Zoned`; None: it is not zoned."""
    found: Zoned | None = node.capability(Zoned)
    return found


def zone_limits(node: BlockNode) -> ZonedLimits | None:
    """Return a node's zone geometry and limits; None: it is not zoned."""
    zones = zones_of(node)
    return None if zones is None else zones.zoned


def check_zoned_child(parent: BlockNode, child: BlockNode) -> None:
    """Raise BlockError if the parent doesn't support a zoned child."""
    limits = zone_limits(child)
    if limits is None or limits.model is not ZoneModel.HOST_MANAGED:
        return
    if isinstance(parent, TakesZonedChildren) and parent.takes_zoned_children:
        return
    raise BlockError(
        f"Cannot add zoned child '{child.node_name}' to '{parent.node_name}', which does not "
        "support zoned children"
    )


_S = ZoneState
_OPEN = frozenset({_S.IMPLICIT_OPEN, _S.EXPLICIT_OPEN})
_ACTIVE = _OPEN | {_S.CLOSED}

#: The state of a zone after an operation. Without an entry the operation is refused. (A zone that
#: was opened and not written becomes empty when it is closed.)
_AFTER: Mapping[ZoneOp, Mapping[ZoneState, ZoneState]] = {
    ZoneOp.OPEN: dict.fromkeys((_S.EMPTY, *_ACTIVE), _S.EXPLICIT_OPEN),
    ZoneOp.CLOSE: dict.fromkeys(_ACTIVE, _S.CLOSED),
    ZoneOp.FINISH: dict.fromkeys((_S.EMPTY, *_ACTIVE, _S.FULL), _S.FULL),
    ZoneOp.RESET: dict.fromkeys((_S.EMPTY, *_ACTIVE, _S.FULL), _S.EMPTY),
}

#: The state of a zone after a write that doesn't fill it.
_AFTER_WRITE: Mapping[ZoneState, ZoneState] = {
    _S.EMPTY: _S.IMPLICIT_OPEN,
    _S.CLOSED: _S.IMPLICIT_OPEN,
    _S.IMPLICIT_OPEN: _S.IMPLICIT_OPEN,
    _S.EXPLICIT_OPEN: _S.EXPLICIT_OPEN,
}


class EmulatedZones:
    """The zones of a host-managed disk of `size` bytes, with `conventional` ones in front.

    `capacity` is that of sequential zones; `worn` has the read-only and offline zones, by number.
    Requests are inside the disk. A request that raises ZoneError changes nothing.
    """

    def __init__(
        self,
        size: int,
        limits: ZonedLimits,
        *,
        capacity: int,
        conventional: int = 0,
        worn: Mapping[int, ZoneState] | None = None,
    ) -> None:
        self.size = size
        self.limits = limits
        self._capacity = capacity
        self._conventional_end = min(conventional * limits.zone_size, size)
        #: States of the sequential zones that are not empty, and the number of bytes written in
        #: each.
        self._states: dict[int, ZoneState] = dict(worn or {})
        self._offline = [n for n, state in self._states.items() if state is _S.OFFLINE]
        self._written: dict[int, int] = {}
        self._open = self._active = 0
        #: The implicitly open zones, in the order in which they were opened.
        self._implicit: dict[int, None] = {}

    def report(self, offset: int, count: int) -> list[Zone]:
        """Return at most `count` zones, from the one that contains `offset`."""
        numbers = self._numbers(offset, self.size - offset) if offset < self.size else range(0)
        return [self._describe(number) for number in numbers[:count]]

    def check_read(self, offset: int, length: int) -> None:
        """Raise ZoneError if a zone in the range can't be read."""
        numbers = self._numbers(offset, length)
        for number in self._offline:
            if number in numbers:
                raise ZoneError(ZoneFault.INVALID, f"zone {number} is offline")

    def write(self, offset: int, length: int) -> None:
        """Write a range."""
        end = offset + length
        if not length or end <= self._conventional_end:
            return
        numbers = self._numbers(offset, length)
        if len(numbers) > 1:
            raise ZoneError(ZoneFault.INVALID, "write crosses a zone boundary")
        number = numbers[0]
        zone = self._describe(number)
        if zone.state not in _AFTER_WRITE:
            raise ZoneError(ZoneFault.INVALID, f"write to zone {number}, {_name(zone.state)}")
        if offset != zone.write_pointer:
            raise ZoneError(
                ZoneFault.UNALIGNED,
                f"write at {offset}, but the write pointer of zone {number} is at "
                f"{zone.write_pointer}",
            )
        if end % self.limits.write_granularity:
            raise ZoneError(ZoneFault.UNALIGNED, "write violates the write granularity")
        if end > zone.start + zone.capacity:
            raise ZoneError(ZoneFault.INVALID, f"write exceeds the capacity of zone {number}")
        self._move(number, _AFTER_WRITE[zone.state])
        self._written[number] = end - zone.start
        if end == zone.start + zone.capacity:
            self._enter(number, _S.FULL)

    def append(self, offset: int, length: int) -> int:
        """Append to the zone that begins at `offset`; return the offset of the data."""
        zone = self._describe(offset // self.limits.zone_size)
        if offset != zone.start or zone.type is ZoneType.CONVENTIONAL:
            raise ZoneError(
                ZoneFault.INVALID, f"append at {offset}: not the start of a sequential zone"
            )
        if zone.state not in _AFTER_WRITE:
            raise ZoneError(ZoneFault.INVALID, f"append at {offset} to a zone {_name(zone.state)}")
        if length > self.limits.max_append:
            raise ZoneError(ZoneFault.INVALID, f"append of {length} bytes exceeds the maximum")
        if length > zone.start + zone.capacity - zone.write_pointer:
            raise ZoneError(
                ZoneFault.INVALID, f"append at {offset} exceeds the capacity of its zone"
            )
        self.write(zone.write_pointer, length)
        return zone.write_pointer

    def manage(self, op: ZoneOp, offset: int, length: int) -> None:
        """Perform an operation on the zones of a range, one by one, up to the first error."""
        if op is ZoneOp.RESET_ALL:
            self._reset_all(list(self._states))
            return
        end, step = offset + length, self.limits.zone_size
        if offset % step or not length or (end % step and end != self.size):
            raise ZoneError(ZoneFault.INVALID, f"{length} bytes at {offset} are not whole zones")
        for number in self._numbers(offset, length):
            state = self._state(number)
            after = _AFTER[op].get(state)
            if after is None:
                raise ZoneError(
                    ZoneFault.INVALID, f"{op.name.lower()} of zone {number}, {_name(state)}"
                )
            if after is _S.CLOSED and not self._written.get(number):
                after = _S.EMPTY
            self._move(number, after)

    def _reset_all(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if self._states[number] in _AFTER[ZoneOp.RESET]:
                self._enter(number, _S.EMPTY)

    def _numbers(self, offset: int, length: int) -> range:
        """Return the numbers of the zones that overlap a range."""
        step = self.limits.zone_size
        return range(offset // step, -(-(offset + length) // step))

    def _state(self, number: int) -> ZoneState:
        if number * self.limits.zone_size < self._conventional_end:
            return _S.NOT_WP
        return self._states.get(number, _S.EMPTY)

    def _describe(self, number: int) -> Zone:
        start = number * self.limits.zone_size
        length = min(self.limits.zone_size, self.size - start)
        state = self._state(number)
        if state is _S.NOT_WP:
            return Zone(start, length, length, start, ZoneType.CONVENTIONAL, state)
        pointer = start + self._written.get(number, 0)
        capacity = min(self._capacity, length)
        return Zone(start, length, capacity, pointer, ZoneType.SEQUENTIAL_REQUIRED, state)

    def _move(self, number: int, after: ZoneState) -> None:
        """Change a zone's state, if there are resources for it."""
        before, limits = self._state(number), self.limits
        activates = after in _ACTIVE and before not in _ACTIVE
        if activates and self._active == limits.max_active > 0:
            raise ZoneError(ZoneFault.ACTIVE_RESOURCES, "too many active zones")
        if after in _OPEN and before not in _OPEN and self._open == limits.max_open > 0:
            if not self._implicit:
                raise ZoneError(ZoneFault.OPEN_RESOURCES, "too many open zones")
            self._enter(next(iter(self._implicit)), _S.CLOSED)
        self._enter(number, after)

    def _enter(self, number: int, after: ZoneState) -> None:
        """Change a zone's state, and count its resources."""
        before = self._state(number)
        if after is before:
            return
        self._open += (after in _OPEN) - (before in _OPEN)
        self._active += (after in _ACTIVE) - (before in _ACTIVE)
        self._implicit.pop(number, None)
        if after is _S.IMPLICIT_OPEN:
            self._implicit[number] = None
        if after is _S.EMPTY:
            self._states.pop(number, None)
            self._written.pop(number, None)
        else:
            self._states[number] = after


def _name(state: ZoneState) -> str:
    if state is _S.NOT_WP:
        return "which is conventional"
    return f"which is {state.name.lower().replace('_', '-')}"

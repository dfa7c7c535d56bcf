# SPDX-License-Identifier: Apache-2.0
"""The snapshot table (section "Snapshots"): parsing and encoding, pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vhostblk.block.drivers.qcow2 import layout
from vhostblk.block.drivers.qcow2.layout import SNAPSHOT_EXTRA, SNAPSHOT_HEADER
from vhostblk.block.errors import BlockError
from vhostblk.schema.base import UNSET
from vhostblk.schema.snapshot import SnapshotInfo

if TYPE_CHECKING:
    from vhostblk.block.drivers.qcow2.layout import Geometry

#: No instruction counter.
NO_ICOUNT = (1 << 64) - 1


@dataclass(slots=True)
class Snapshot:
    """One internal snapshot; sizes in bytes, times as in the file."""

    id: bytes
    name: bytes
    l1_offset: int
    l1_size: int
    disk_size: int
    vm_state_size: int = 0
    date_sec: int = 0
    date_nsec: int = 0
    vm_clock_nsec: int = 0
    icount: int = NO_ICOUNT
    #: Size of the extra data in the file, including unknown members.
    extra_size: int = SNAPSHOT_EXTRA.size
    unknown_extra: bytes = b""

    def describe(self) -> SnapshotInfo:
        """Return the snapshot's entry in queries."""
        seconds, nanoseconds = divmod(self.vm_clock_nsec, 10**9)
        return SnapshotInfo(
            id=self.id.decode(errors="replace"),
            name=self.name.decode(errors="replace"),
            vm_state_size=self.vm_state_size,
            date_sec=self.date_sec,
            date_nsec=self.date_nsec,
            vm_clock_sec=seconds,
            vm_clock_nsec=nanoseconds,
            icount=UNSET if self.icount == NO_ICOUNT else self.icount,
        )


@dataclass
class SnapshotTable:
    """All snapshots, and the length of the table in the file."""

    entries: list[Snapshot] = field(default_factory=list)
    table_bytes: int = 0

    def written(self, entries: list[Snapshot], table_bytes: int) -> None:
        """Record the table that the file has now."""
        self.entries, self.table_bytes = entries, table_bytes


class Incomplete(Exception):  # noqa: N818 (not an error: the reader fetches more)
    """More bytes are needed to parse the table."""


def parse_table(data: bytes, count: int, disk_size: int) -> SnapshotTable:
    """Parse `count` entries at the start of `data`; raises BlockError, or Incomplete."""
    table = SnapshotTable()
    position = 0
    for index in range(count):
        position = -(-position // 8) * 8
        entry, position = _parse_entry(data, position, index, disk_size)
        table.entries.append(entry)
        if position > layout.MAX_SNAPSHOTS_BYTES:
            raise BlockError("Snapshot table is too big")
    table.table_bytes = position
    return table


def _parse_entry(data: bytes, position: int, index: int, disk_size: int) -> tuple[Snapshot, int]:
    def take(nbytes: int) -> bytes:
        nonlocal position
        if position + nbytes > len(data):
            raise Incomplete
        position += nbytes
        return data[position - nbytes : position]

    raw = SNAPSHOT_HEADER.decode(take(SNAPSHOT_HEADER.size))
    extra_size = raw["extra_data_size"]
    if extra_size > layout.MAX_SNAPSHOT_EXTRA_DATA:
        raise BlockError(f"Too much extra metadata in snapshot table entry {index}")
    extra = take(extra_size)
    known = SNAPSHOT_EXTRA.decode(extra.ljust(SNAPSHOT_EXTRA.size, b"\0"))
    snapshot = Snapshot(
        id=take(raw["id_size"]),
        name=take(raw["name_size"]),
        l1_offset=raw["l1_table_offset"],
        l1_size=raw["l1_size"],
        disk_size=known["disk_size"] if extra_size >= 16 else disk_size,
        vm_state_size=known["vm_state_size"] if extra_size >= 8 else raw["vm_state_size"],
        date_sec=raw["date_sec"],
        date_nsec=raw["date_nsec"],
        vm_clock_nsec=raw["vm_clock_nsec"],
        icount=known["icount"] if extra_size >= 24 else NO_ICOUNT,
        extra_size=extra_size,
        unknown_extra=extra[SNAPSHOT_EXTRA.size :],
    )
    return snapshot, position


def encode_table(entries: list[Snapshot]) -> bytes:
    """Return the table; each entry has all known extra data."""
    parts: list[bytes] = []
    for each in entries:
        extra = SNAPSHOT_EXTRA.encode(
            vm_state_size=each.vm_state_size, disk_size=each.disk_size, icount=each.icount
        )
        tail = extra + each.unknown_extra
        raw = SNAPSHOT_HEADER.encode(
            l1_table_offset=each.l1_offset,
            l1_size=each.l1_size,
            id_size=len(each.id),
            name_size=len(each.name),
            date_sec=each.date_sec,
            date_nsec=each.date_nsec,
            vm_clock_nsec=each.vm_clock_nsec,
            vm_state_size=each.vm_state_size if each.vm_state_size < 1 << 32 else 0,
            extra_data_size=len(tail),
        )
        entry = raw + tail + each.id + each.name
        parts.append(entry.ljust(-(-len(entry) // 8) * 8, b"\0"))
    return b"".join(parts)


def check_l1(geometry: Geometry, snapshot: Snapshot) -> None:
    """Raise BlockError if the offset or the size of a snapshot's L1 table is invalid."""
    from vhostblk.block.drivers.qcow2.header import check_table

    check_table(
        geometry,
        snapshot.l1_offset,
        snapshot.l1_size,
        8,
        layout.MAX_L1_BYTES,
        "Snapshot L1 table",
    )

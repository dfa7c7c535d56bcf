# SPDX-License-Identifier: Apache-2.0
"""`ExtentMap`: what a node lets others do with its storage without asking.

A node that can say "these bytes are those bytes of that file" publishes a map, and the compiled
engine repeats the decision in it for every request. What a map does not cover is asked as ever,
through the node's coroutines, so a node that publishes nothing is correct and merely slower. A map
is a value; when the graph, an option or a permission changes, inside a drained section, users take
a new one.
"""

from __future__ import annotations

import mmap
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec.structs import replace

if TYPE_CHECKING:
    from vhostblk.engine.budget import EngineBudget
    from vhostblk.engine.sync import FileSync


class ExtentKind(Enum):
    """How bytes are found."""

    #: There is no storage: writes vanish, reads leave the memory as it is, or zero it.
    NULL = "null"
    #: Byte n is byte offset + n of the file.
    LINEAR = "linear"
    #: One entry a cluster says where it is.
    TABLE = "table"


class Treatment(Enum):
    """What becomes of a flush or a discard."""

    #: The node is asked.
    ASK = "ask"
    #: It is done to the file.
    FILE = "file"
    #: It succeeds and does nothing.
    IGNORE = "ignore"


class TableUser(Protocol):
    """Who goes by a table, at any time and without asking."""

    async def settle(self) -> None:
        """Wait until what went by the table before now has ended."""


class ExtentTable:
    """Where each cluster of `1 << cluster_bits` bytes is, and what may be done with it.

    An entry is a file offset and, in the low nine bits, flags (`enum vb_extent_entry`). With an
    entry 0, requests go to the node. With a volatile entry, which a crash may take back, writes
    that must be durable go to the node, too. The node changes entries at any time, each of them
    atomically. After it took an entry back, it waits (`settle`) before it reuses the storage.
    """

    def __init__(self, cluster_bits: int, count: int) -> None:
        self.cluster_bits = cluster_bits
        self.count = count
        # Private pages come into being when they are touched.
        self.memory = mmap.mmap(-1, max(count, 1) * 8, mmap.MAP_PRIVATE | _MAP_NORESERVE)
        self._users: dict[TableUser, int] = {}

    def add_user(self, user: TableUser) -> None:
        """Have `user` take part in `settle`; it may be added more than once."""
        self._users[user] = self._users.get(user, 0) + 1

    def remove_user(self, user: TableUser) -> None:
        """Undo one `add_user`."""
        self._users[user] -= 1
        if not self._users[user]:
            del self._users[user]

    async def settle(self) -> None:
        """Wait until no user's operation that began before now is in flight."""
        for user in list(self._users):
            await user.settle()


_MAP_NORESERVE = 0x4000


class ExtentMap(msgspec.Struct, frozen=True):
    """A map of `size` bytes; offsets and sizes in bytes."""

    kind: ExtentKind
    size: int
    fd: int = -1
    offset: int = 0
    #: Of offsets, lengths and memory addresses; others are asked.
    alignment: int = 1
    #: Writes and write-zeroes may be done.
    writable: bool = False
    #: Null: reads give zeroes.
    read_zeroes: bool = False
    #: I/O goes through the page cache, so that an attempt at once may pay.
    buffered: bool = False
    #: fallocate can zero a range.
    zero_range: bool = False
    flush: Treatment = Treatment.ASK
    discard: Treatment = Treatment.ASK
    table: ExtentTable | None = None
    #: Shared by all who flush the file; None where one failure means nothing for the next flush.
    sync: FileSync | None = None
    #: What reads and writes are accounted for in; those that it lacks the means for are asked.
    budget: EngineBudget | None = None

    def window(self, offset: int, size: int) -> ExtentMap | None:
        """Return the map of `size` bytes from `offset` on; None where there is none."""
        if self.kind is ExtentKind.TABLE and offset:
            return None
        return replace(self, offset=self.offset + offset, size=size)

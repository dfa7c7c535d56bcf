# SPDX-License-Identifier: Apache-2.0
"""`ExtentMap`: what a node lets others do with its storage without asking.

A node that can say "these bytes are those bytes of that file" publishes a map, and the compiled
engine repeats the decision in it for every request. What a map does not cover is asked as ever,
through the node's coroutines, so a node that publishes nothing is correct and merely slower. A map
is a value; when the graph, an option or a permission changes, inside a drained section, users take
a new one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from array import array

    from vhostblk.engine.budget import EngineBudget


class ExtentKind(Enum):
    """How bytes are found."""

    #: There is no storage: writes vanish, reads leave the memory as it is, or zero it.
    NULL = "null"
    #: Byte n is byte offset + n of the file.
    LINEAR = "linear"


class Treatment(Enum):
    """What becomes of a flush or a discard."""

    #: The node is asked.
    ASK = "ask"
    #: It is done to the file.
    FILE = "file"
    #: It succeeds and does nothing.
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class ExtentMap:
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
    #: One C int, the errno of a flush that failed, shared by all who flush the file.
    flush_error: array[int] | None = None
    #: What reads and writes are accounted for in; those that it lacks the means for are asked.
    budget: EngineBudget | None = None

    def window(self, offset: int, size: int) -> ExtentMap:
        """Return the map of `size` bytes from `offset` on."""
        return replace(self, offset=self.offset + offset, size=size)

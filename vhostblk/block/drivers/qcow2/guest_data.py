# SPDX-License-Identifier: Apache-2.0
"""The path of guest data between the disk's users and the data file.

Any processing of the data belongs here, and only here. Today there is none: the calls are those of
the edge. Offsets are those in the data file. Compressed clusters have a path of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhostblk.block.graph.edge import Edge


class GuestData:
    """Reads and writes guest data in the data file."""

    def __init__(self, edge: Edge) -> None:
        # The edge's own methods, without a wrapper, as this is the fast path.
        #: `read(offset, iov)`, `write(offset, iov)`, `write_zeroes(offset, length, flags)`.
        self.read = edge.preadv
        self.write = edge.pwritev
        self.write_zeroes = edge.pwrite_zeroes
        #: The data file's map, for direct access.
        self.extent_map = edge.extent_map

# SPDX-License-Identifier: Apache-2.0
"""The way of guest data between the disk's users and the data file.

Whatever is done to the data on its way is done here, and nowhere else. Today nothing is: the calls
are those of the edge. Offsets are those in the data file. Compressed clusters have their own way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhostblk.block.graph.edge import Edge


class GuestData:
    """Reads and writes guest data in the data file."""

    def __init__(self, edge: Edge) -> None:
        # No method of ours is in between, as this is the fast path.
        #: `read(offset, iov)`, `write(offset, iov)`, `write_zeroes(offset, length, flags)`.
        self.read = edge.preadv
        self.write = edge.pwritev
        self.write_zeroes = edge.pwrite_zeroes
        #: The data file's map: others do the same with it.
        self.extent_map = edge.extent_map

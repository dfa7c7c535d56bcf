# SPDX-License-Identifier: Apache-2.0
"""The part of opening an image that works without numpy.

Importing numpy takes longer than everything else that happens before clients can connect. So if
numpy is not loaded yet, the daemon reads the header and the top-level tables as bytes. The rest is
done at the first request (`Lifecycle`).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

from vhostblk.block.drivers.qcow2 import compressed, header
from vhostblk.block.drivers.qcow2.layout import Autoclear, Incompatible
from vhostblk.block.errors import BlockError
from vhostblk.errors import errno_of, errors_as, reason

if TYPE_CHECKING:
    from vhostblk.block.drivers.qcow2.header import Header
    from vhostblk.block.graph.edge import Edge


class TopTables(NamedTuple):
    """The L1 table and the refcount table, up to the end of the file."""

    l1: bytes
    refcounts: bytes


async def read_plainly(edge: Edge, offset: int, length: int) -> bytes:
    """Read bytes; past the end of the file they are zeroes. Raises OSError."""
    found = None if _numpy_is_loaded() else edge.node.read_early(offset, length)
    if found is None:
        from vhostblk.block.drivers.qcow2.transfer import read_bytes

        return await read_bytes(edge, offset, length)
    return found.ljust(length, b"\0")


def _numpy_is_loaded() -> bool:
    return "numpy" in sys.modules


#: The message for an image whose tables can't be read.
UNREADABLE = "Could not read qcow2 metadata"


async def read_header(file: Edge) -> Header:
    """Read and parse the first cluster; raises BlockError."""
    try:
        probe = await read_plainly(file, 0, header.PROBE_BYTES)
        data = await read_plainly(file, 0, header.cluster_size_of(probe))
    except OSError as error:
        raise BlockError(f"Could not read qcow2 header: {reason(errno_of(error))}") from error
    parsed = header.parse(data)
    compressed.check_available(parsed.compression_type)
    return parsed


async def read_top_tables(file: Edge, parsed: Header) -> TopTables | None:
    """Read the tables, if the image needs nothing else; None: the image must be loaded at once.

    Raises BlockError.
    """
    if (
        _numpy_is_loaded()
        or parsed.nb_snapshots
        or parsed.bitmaps is not None
        or parsed.stale_bitmaps
        or parsed.autoclear & ~int(Autoclear.ALL)
        or parsed.incompatible & Incompatible.DIRTY
    ):
        return None
    with errors_as(BlockError, UNREADABLE):
        return TopTables(
            await _read_words(file, parsed.l1_offset, 8 * parsed.l1_size),
            await _read_words(
                file,
                parsed.reftable_offset,
                parsed.reftable_clusters << parsed.geometry.cluster_bits,
            ),
        )


async def _read_words(file: Edge, offset: int, length: int) -> bytes:
    """Read the part of a table that is in the file."""
    there = max(file.node.size - offset, 0) & ~7
    return await read_plainly(file, offset, min(length, there)) if there else b""

# SPDX-License-Identifier: Apache-2.0
"""Extent maps as the engine reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from vhostblk.engine.extents import ExtentKind, Treatment

if TYPE_CHECKING:
    from vhostblk.engine.extents import ExtentMap


def encode_map(ffi: Any, lib: Any, extents: ExtentMap) -> Any:
    """Return a `struct vb_extent_map *`; whoever publishes it keeps it, and its parts, alive."""
    flags = 0
    for wanted, flag in (
        (extents.read_zeroes, lib.VB_EXTENT_READ_ZEROES),
        (extents.writable, lib.VB_EXTENT_WRITE),
        (extents.buffered, lib.VB_EXTENT_BUFFERED),
        (extents.buffered and lib.vb_file_in_memory(extents.fd), lib.VB_EXTENT_IN_MEMORY),
        (extents.zero_range, lib.VB_EXTENT_ZERO_RANGE),
        (extents.flush is Treatment.FILE, lib.VB_EXTENT_FLUSH),
        (extents.flush is Treatment.IGNORE, lib.VB_EXTENT_NO_FLUSH),
        (extents.discard is Treatment.FILE, lib.VB_EXTENT_DISCARD),
        (extents.discard is Treatment.IGNORE, lib.VB_EXTENT_NO_DISCARD),
    ):
        if wanted:
            flags |= flag
    kinds = {
        ExtentKind.NULL: lib.VB_EXTENT_NULL,
        ExtentKind.LINEAR: lib.VB_EXTENT_LINEAR,
        ExtentKind.TABLE: lib.VB_EXTENT_TABLE,
    }
    table, cluster_bits = ffi.NULL, 0
    if extents.table is not None:
        table = ffi.from_buffer("uint64_t *", extents.table.memory)
        cluster_bits = extents.table.cluster_bits
    encoded = ffi.new(
        "struct vb_extent_map *",
        {
            "kind": kinds[extents.kind],
            "flags": flags,
            "fd": extents.fd,
            "alignment": extents.alignment,
            "size": extents.size,
            "offset": extents.offset,
            "sync": ffi.NULL if extents.sync is None else extents.sync.handle,
            "budget": ffi.NULL if extents.budget is None else extents.budget.handle,
            "cluster_bits": cluster_bits,
            "table": table,
        },
    )
    _parts[encoded] = (extents.sync, extents.budget, table)
    return encoded


#: What an encoded map points to, for as long as the map lives.
_parts: WeakKeyDictionary[Any, object] = WeakKeyDictionary()

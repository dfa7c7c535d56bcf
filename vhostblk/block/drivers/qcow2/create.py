# SPDX-License-Identifier: Apache-2.0
"""Creation of images for `blockdev-create`.

First an image of size 0 is written: a header, a refcount table and a block, each a cluster. Then it
is opened like any image, and resized. Options are checked in QEMU's order, with its messages.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from vhostblk.block import SECTOR
from vhostblk.block.drivers.qcow2 import header as header_module
from vhostblk.block.drivers.qcow2 import layout
from vhostblk.block.drivers.qcow2.compressed import check_available
from vhostblk.block.drivers.qcow2.header import Header
from vhostblk.block.drivers.qcow2.layout import Autoclear, Compatible, Geometry, Incompatible
from vhostblk.block.drivers.qcow2.refcounts import pack
from vhostblk.block.drivers.qcow2.transfer import write_bytes
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.graph.storage import check_formattable
from vhostblk.errors import errors_as
from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.common import PreallocMode
from vhostblk.schema.drivers.qcow2 import BlockdevOptionsQcow2
from vhostblk.schema.drivers.qcow2_create import BlockdevQcow2Version, Qcow2CompressionType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vhostblk.block.drivers.qcow2.node import Qcow2Node
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.node import BlockNode
    from vhostblk.block.pause import Pause
    from vhostblk.schema.drivers.qcow2_create import BlockdevCreateOptionsQcow2

_WRITER = Perm.WRITE | Perm.RESIZE


async def create(options: BlockdevCreateOptionsQcow2, graph: Graph, pause: Pause) -> None:
    """Create an image in a file without other users; raises BlockError or OSError."""
    async with graph.borrowed(options.file) as file:
        check_formattable(file)
        parsed, mode = describe(options)
        data_ref = options.data_file
        if isinstance(data_ref, UnsetType):
            await _create(options, graph, parsed, mode, (file, None), pause)
            return
        if parsed.version < 3:
            raise BlockError(_too_old("External data files are only supported with compatibility"))
        async with graph.borrowed(data_ref) as data:
            check_formattable(data)
            from vhostblk.block.graph.image_name import image_name

            parsed.data_file = image_name(data).encode(errors="surrogateescape")
            await _create(options, graph, parsed, mode, (file, data), pause)


def describe(options: BlockdevCreateOptionsQcow2) -> tuple[Header, PreallocMode]:
    """Return the header of an image of size 0, and the mode of its growth; raises BlockError."""
    version = 2 if options.version is BlockdevQcow2Version.V2 else 3
    if options.size % SECTOR:
        raise BlockError(f"Image size must be a multiple of {SECTOR} bytes")
    if options.extended_l2 and version < 3:
        raise BlockError(_too_old("Extended L2 entries are only supported with compatibility"))
    cluster_bits = _cluster_bits(options)
    _check_backing(options)
    if options.lazy_refcounts and version < 3:
        raise BlockError(_too_old("Lazy refcounts only supported with compatibility"))
    refcount_order = _refcount_order(options.refcount_bits, version)
    mode = _check_raw_data_file(options)
    zstd = options.compression_type is Qcow2CompressionType.ZSTD
    if zstd and version < 3:
        raise BlockError(_too_old("Non-zlib compression type is only supported with compatibility"))
    if options.encrypt is not UNSET:
        raise BlockError("qcow2: encrypted images are not supported ('encrypt')")
    external = options.data_file is not UNSET
    incompatible = Incompatible(0)
    if external:
        incompatible |= Incompatible.DATA_FILE
    if zstd:
        incompatible |= Incompatible.COMPRESSION
        check_available(layout.COMPRESSION_ZSTD)
    if options.extended_l2:
        incompatible |= Incompatible.EXTENDED_L2
    parsed = Header(
        Geometry(version, cluster_bits, refcount_order, options.extended_l2, external),
        size=0,
        l1_offset=0,
        l1_size=0,
        reftable_offset=1 << cluster_bits,
        reftable_clusters=1,
        incompatible=int(incompatible),
        compatible=int(Compatible.LAZY_REFCOUNTS) if options.lazy_refcounts else 0,
        autoclear=int(Autoclear.DATA_FILE_RAW) if options.data_file_raw else 0,
        compression_type=layout.COMPRESSION_ZSTD if zstd else layout.COMPRESSION_ZLIB,
    )
    return parsed, mode


def _too_old(text: str) -> str:
    return f"{text} level 1.1 and above (use version=v3 or greater)"


def _cluster_bits(options: BlockdevCreateOptionsQcow2) -> int:
    size = options.cluster_size
    bits = size.bit_length() - 1
    if not layout.MIN_CLUSTER_BITS <= bits <= layout.MAX_CLUSTER_BITS or size != 1 << bits:
        raise BlockError(
            f"Cluster size must be a power of two between {1 << layout.MIN_CLUSTER_BITS} and "
            f"{1 << layout.MAX_CLUSTER_BITS - 10}k"
        )
    least = layout.SUBCLUSTERS << layout.MIN_CLUSTER_BITS
    if options.extended_l2 and size < least:
        raise BlockError(
            f"Extended L2 entries are only supported with cluster sizes of at least {least} bytes"
        )
    return bits


def _check_backing(options: BlockdevCreateOptionsQcow2) -> None:
    has_backing = options.backing_file is not UNSET
    if has_backing and options.preallocation is not PreallocMode.OFF and not options.extended_l2:
        raise BlockError(
            "Backing file and preallocation can only be used at the same time if extended_l2 is on"
        )
    if options.backing_fmt is not UNSET and not has_backing:
        raise BlockError("Backing format cannot be used without backing file")


def _refcount_order(bits: int, version: int) -> int:
    if not 0 < bits <= 64 or bits & (bits - 1):
        raise BlockError("Refcount width must be a power of two and may not exceed 64 bits")
    if version < 3 and bits != 16:
        raise BlockError(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above "
            "(use version=v3 or greater)"
        )
    return bits.bit_length() - 1


def _check_raw_data_file(options: BlockdevCreateOptionsQcow2) -> PreallocMode:
    """Return the mode in force: a raw data file has the same content without the tables."""
    if not options.data_file_raw:
        return options.preallocation
    if options.data_file is UNSET:
        raise BlockError("data-file-raw requires data-file")
    if options.backing_file is not UNSET:
        raise BlockError("Backing file and data-file-raw cannot be used at the same time")
    if options.preallocation is PreallocMode.OFF:
        return PreallocMode.METADATA
    return options.preallocation


async def _create(
    options: BlockdevCreateOptionsQcow2,
    graph: Graph,
    parsed: Header,
    mode: PreallocMode,
    nodes: tuple[BlockNode, BlockNode | None],
    pause: Pause,
) -> None:
    file, data = nodes
    async with AsyncExitStack() as users:
        backend = await users.enter_async_context(_exclusive_backend(graph, file))
        backend.writes_past_end = file.grows_by_writing
        if data is not None and data is not file:
            await users.enter_async_context(_exclusive_backend(graph, data))
        await _write_empty(backend, parsed)
    opened = BlockdevOptionsQcow2(
        file=file.node_name,
        data_file=UNSET if data is None else data.node_name,
        backing=None,
    )
    async with graph.borrowed(opened) as node:
        # From here on the data file is written to as well.
        for edge in node.children.values():
            edge.exclusive = True
        async with _exclusive_backend(graph, node) as backend:
            _flush_children(node, False)
            await _resize(node, options.size, mode, pause)  # type: ignore[arg-type]
            await _set_backing(node, options)  # type: ignore[arg-type]
            _flush_children(node, True)
            await backend.flush()


@asynccontextmanager
async def _exclusive_backend(graph: Graph, node: BlockNode) -> AsyncIterator[BlockBackend]:
    """Yield a backend that can write to a node and excludes other users; raises BlockError."""
    backend = BlockBackend("", _WRITER)
    try:
        async with graph.changing():
            backend.attach(graph, node)
            backend.exclude_others()
        yield backend
    finally:
        await backend.detach()


def _flush_children(node: BlockNode, wanted: bool) -> None:
    for edge in node.children.values():
        edge.flushes = wanted


async def _write_empty(backend: BlockBackend, parsed: Header) -> None:
    """Write an image of size 0."""
    import numpy as np

    geometry = parsed.geometry
    cluster = geometry.cluster_size
    first = header_module.encode(parsed)
    table = (2 * cluster).to_bytes(8, "big").ljust(cluster, b"\0")
    counts = np.zeros(1 << geometry.refblock_bits, np.uint64)
    counts[:3] = 1
    block = pack(counts, geometry.refcount_order).tobytes()
    for offset, part, name in (
        (0, first, "qcow2 header"),
        (cluster, table + block, "refcount table"),
    ):
        with errors_as(BlockError, f"Could not write {name}"):
            if backend.size < offset + len(part) and not backend.writes_past_end:
                await backend.truncate(offset + len(part))
            await write_bytes(backend.edge, offset, part)


async def _resize(node: Qcow2Node, size: int, mode: PreallocMode, pause: Pause) -> None:
    if size > layout.INT64_MAX:
        raise BlockError("Could not resize image: Image size cannot be negative")
    with errors_as(BlockError, "Could not resize image"):
        await node.grow(size, mode, pause)


async def _set_backing(node: Qcow2Node, options: BlockdevCreateOptionsQcow2) -> None:
    name = options.backing_file
    if isinstance(name, UnsetType):
        return
    kind = options.backing_fmt
    text = None if isinstance(kind, UnsetType) else str(kind.value)
    what = f"Could not assign backing file '{name}' with format '{text or '(null)'}'"
    with errors_as(BlockError, what):
        await node.change_backing_file(name, text)

# SPDX-License-Identifier: Apache-2.0
"""`raw` with an offset or a size: a window; no request reaches outside of it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import RW, fails_with, options, read_bytes, run, write_bytes
from vhostblk.block.errors import PermissionConflictError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.iovec import IoVec

if TYPE_CHECKING:
    from vhostblk.block.graph.node import BlockNode

KIB = 1024
SIZE = 256 * KIB
OFFSET = 64 * KIB


async def open_window(path: Any, **members: Any) -> tuple[Graph, BlockNode, BlockBackend]:
    graph = Graph()
    file = {"driver": "file", "node-name": "file", "filename": str(path), "discard": "unmap"}
    window = {"driver": "raw", "node_name": "window", "offset": OFFSET, **members}
    node = await graph.add(options(file=file, discard="unmap", **window))
    backend = BlockBackend("test", RW)
    backend.attach(graph, node)
    return graph, node, backend


@pytest.mark.parametrize("size", [None, 128 * KIB])
def test_requests_stay_inside(tmp_path: Any, size: int | None) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes([1 + number // KIB % 200 for number in range(SIZE)]))
    expected = bytearray(path.read_bytes())

    async def main() -> None:
        members = {} if size is None else {"size": size}
        graph, node, backend = await open_window(path, **members)
        end = OFFSET + node.size
        assert node.size == (size or SIZE - OFFSET)

        await write_bytes(backend, 0, b"f" * 512)
        await write_bytes(backend, node.size - 512, b"l" * 512)
        expected[OFFSET : OFFSET + 512], expected[end - 512 : end] = b"f" * 512, b"l" * 512
        for at, flags in ((8 * KIB, WriteFlags.NONE), (16 * KIB, WriteFlags.MAY_UNMAP)):
            await backend.pwrite_zeroes(at, 4 * KIB, flags)
            expected[OFFSET + at : OFFSET + at + 4 * KIB] = bytes(4 * KIB)
        await backend.pdiscard(24 * KIB, 4 * KIB)
        expected[OFFSET + 24 * KIB : OFFSET + 28 * KIB] = bytes(4 * KIB)
        assert path.read_bytes() == expected
        for at in (0, 8 * KIB, 60 * KIB, node.size - 512):
            assert await read_bytes(backend, at, 512) == expected[OFFSET + at :][:512]
        segments = IoVec.from_buffers([bytearray(512), bytearray(512)])
        assert not any(await backend.edge.pread_segments([0, 32 * KIB], segments))
        assert segments.to_bytes() == expected[OFFSET:][:512] + expected[OFFSET + 32 * KIB :][:512]
        await backend.detach()
        await graph.close()

    run(main)


def test_a_format_in_a_window_does_not_write_behind_it(tmp_path: Any) -> None:
    """Formats make their file longer by writing, but a window has a fixed end."""
    path = tmp_path / "disk"
    path.write_bytes(b"x" * SIZE)

    async def main() -> None:
        graph, _, backend = await open_window(path, size=128 * KIB)
        top = await graph.add(options(driver="raw", node_name="top", file="window"))
        await backend.detach()
        backend.attach(graph, top)
        edge = top.children["file"]
        edge.perm |= Perm.RESIZE
        iov = IoVec.allocate(1024)
        for request in (
            edge.pwritev(128 * KIB - 512, iov),
            edge.pwritev(128 * KIB, iov),
            edge.pwrite_zeroes(128 * KIB - 512, 1024),
        ):
            with fails_with(errno.ENOSPC):
                await request
        with fails_with(errno.ENOTSUP):
            await edge.truncate(200 * KIB)
        await backend.detach()
        await graph.close()

    run(main)
    assert path.read_bytes() == b"x" * SIZE


def test_nobody_resizes_what_a_window_lies_in(tmp_path: Any) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * SIZE)

    async def main() -> None:
        graph, _, backend = await open_window(path, size=128 * KIB)
        other = BlockBackend("other", Perm.RESIZE)
        with pytest.raises(PermissionConflictError):
            other.attach(graph, graph.find("file"))
        await backend.detach()
        await graph.close()

    run(main)

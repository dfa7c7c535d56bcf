# SPDX-License-Identifier: Apache-2.0
"""A disk in memory that checks the contract, and short ways to make nodes and backends."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import pytest

from vhostblk.block.graph.actions import perform
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.inherit import resolve
from vhostblk.block.graph.node import BlockLimits, BlockNode
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.iovec import IoVec
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.convert import from_json
from vhostblk.schema.drivers.null import BlockdevOptionsNull

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from vhostblk.block.graph.actions import Action

RW = Perm.CONSISTENT_READ | Perm.WRITE


class MemoryNode(BlockNode):
    """Bytes in memory. Each request is checked against the limits, and suspends once."""

    driver = "memory"

    def __init__(self, size: int, limits: BlockLimits, **options: Any) -> None:
        struct = resolve(BlockdevOptionsNull(node_name="memory", **options))
        super().__init__("memory", struct)
        self.read_only = struct.read_only
        self.limits = limits
        self.data = bytearray(size)
        self.log: list[str] = []
        self.zeroes_error: int | None = None

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        raise NotImplementedError

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def grows_by_writing(self) -> bool:
        return True

    def _check(self, offset: int, iov: IoVec) -> None:
        align = self.limits.request_alignment
        assert offset % align == 0
        assert iov.nbytes % align == 0
        assert not (iov.segments["base"] % self.limits.memory_alignment).any()
        assert iov.count <= self.limits.max_iov
        assert not self.limits.max_transfer or iov.nbytes <= self.limits.max_transfer

    async def preadv(self, offset: int, iov: IoVec) -> None:
        self._check(offset, iov)
        await asyncio.sleep(0)
        data = bytes(self.data[offset : offset + iov.nbytes])
        iov.copy_from(data.ljust(iov.nbytes, b"\0"))

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        self._check(offset, iov)
        assert not flags & ~self.native_flags
        data = iov.to_bytes()
        await asyncio.sleep(0)
        self.log.append("write")
        self._store(offset, data)

    def _store(self, offset: int, data: bytes) -> None:
        if offset + len(data) > len(self.data):
            self.data.extend(bytes(offset + len(data) - len(self.data)))
        self.data[offset : offset + len(data)] = data

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        assert (offset | length) % self.limits.request_alignment == 0
        self.log.append("unmap" if flags & WriteFlags.MAY_UNMAP else "zero")
        if self.zeroes_error is not None:
            raise OSError(self.zeroes_error, "injected")
        self._store(offset, bytes(length))

    async def pdiscard(self, offset: int, length: int) -> None:
        assert (offset | length) % self.limits.request_alignment == 0
        self.log.append(f"discard {offset}+{length}")

    async def flush(self) -> None:
        self.log.append("flush")


def options(**members: Any) -> Any:
    """Convert QAPI members to an options struct; `_` in names stands for `-`."""
    wire = {name.replace("_", "-"): value for name, value in members.items()}
    return from_json(BlockdevOptions, wire)


def backend_on(
    node: BlockNode, perm: Perm = RW, request_alignment: int = 1
) -> tuple[Graph, BlockBackend]:
    """Attach a backend to a node that the graph need not know."""
    graph = Graph()
    backend = BlockBackend("test", perm)
    backend.request_alignment = request_alignment
    backend.attach(graph, node)
    return graph, backend


async def write_bytes(backend: BlockBackend, offset: int, data: bytes) -> None:
    await backend.pwritev(offset, IoVec.from_buffers([bytearray(data)]))


async def read_bytes(backend: BlockBackend, offset: int, length: int) -> bytes:
    iov = IoVec.allocate(length)
    iov.fill(0xEE)
    await backend.preadv(offset, iov)
    return iov.to_bytes()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine function."""
    asyncio.run(main())


@contextmanager
def fails_with(code: int) -> Iterator[None]:
    """Expect an OSError with this errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 -- the errno is checked
        yield
    assert caught.value.errno == code


async def change_bitmap(
    make: Callable[..., Action], graph: Graph, *arguments: Any, **members: Any
) -> None:
    """Perform one of the actions on bitmaps, by its class and its arguments."""
    await perform(graph, [make(graph, *arguments, **members)])

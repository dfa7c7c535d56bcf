# SPDX-License-Identifier: Apache-2.0
"""Short ways to open files, and an engine that fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import RW, options
from vhostblk.block.drivers.posix import PosixNode
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.completion import Completion

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vhostblk.block.io.iovec import IoVec

MIB = 1 << 20


async def open_file(
    path: Path, perm: Perm = RW | Perm.RESIZE, **members: Any
) -> tuple[Graph, PosixNode, BlockBackend]:
    graph = Graph()
    node = await graph.add(options(driver="file", node_name="disk", filename=str(path), **members))
    assert isinstance(node, PosixNode)
    backend = BlockBackend("test", perm)
    backend.attach(graph, node)
    return graph, node, backend


async def close(graph: Graph, backend: BlockBackend) -> None:
    await backend.detach()
    await graph.close()


async def open_error(**members: Any) -> str:
    graph = Graph()
    with pytest.raises(BlockError) as caught:
        await graph.add(options(node_name="disk", **members))
    await graph.close()
    return str(caught.value)


class Faults:
    """Stands before an engine and makes chosen operations fail or fall short."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.results: list[int | Callable[[int], int]] = []
        #: The error that fallocate returns, if not 0.
        self.fallocate_fails = 0
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _next(self) -> int | None:
        self.calls += 1
        return self.results.pop(0) if self.results else None  # type: ignore[return-value]

    def _answer(self, method: Any, fd: int, iov: IoVec, offset: int) -> Completion[int]:
        planned = self._next()
        if planned is None:
            return method(fd, iov, offset)  # type: ignore[no-any-return]
        if planned > 0:
            iov = iov.slice(0, min(planned, iov.nbytes))
            return method(fd, iov, offset)  # type: ignore[no-any-return]
        return finished(planned)

    def preadv(self, fd: int, iov: IoVec, offset: int) -> Completion[int]:
        return self._answer(self._engine.preadv, fd, iov, offset)

    def pwritev(self, fd: int, iov: IoVec, offset: int) -> Completion[int]:
        return self._answer(self._engine.pwritev, fd, iov, offset)

    def fdatasync(self, fd: int) -> Completion[int]:
        planned = self._next()
        return self._engine.fdatasync(fd) if planned is None else finished(planned)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> Completion[int]:
        if self.fallocate_fails:
            return finished(self.fallocate_fails)
        return self._engine.fallocate(fd, mode, offset, length)  # type: ignore[no-any-return]


def finished(result: int) -> Completion[int]:
    completion: Completion[int] = Completion()
    asyncio.get_running_loop().call_soon(completion.set_result, result)
    return completion


def with_faults(node: PosixNode) -> Faults:
    faults = Faults(node._aio)
    node._inline = None
    node._aio = faults  # type: ignore[assignment]
    return faults


async def close_faulty(graph: Graph, node: PosixNode, backend: BlockBackend) -> None:
    node._aio = node._aio._engine  # type: ignore[attr-defined]
    await close(graph, backend)

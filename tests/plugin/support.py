# SPDX-License-Identifier: Apache-2.0
"""Small drivers, packages made of them, and short ways to open them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tests.block.support import options
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.permissions import Perm
from vhostblk.plugin import Driver, Options, Size, SyncDriver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vhostblk.block.graph.node import BlockNode


class MemoryOptions(Options, tag="test-memory", frozen=True):
    """A disk in memory."""

    size: Size = 1 << 20
    label: str = ""


class Memory(Driver[MemoryOptions]):
    """Reads and writes; all the rest is left out."""

    options_type = MemoryOptions

    async def open(self) -> None:
        self.data = bytearray(self.options.size)

    def size(self) -> int:
        return self.options.size

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    async def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data


class SyncMemory(SyncDriver[MemoryOptions]):
    """The same without coroutines."""

    options_type = MemoryOptions

    def open(self) -> None:
        self.data = bytearray(self.options.size)

    def size(self) -> int:
        return self.options.size

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data


@asynccontextmanager
async def opened(
    perm: Perm = Perm.CONSISTENT_READ | Perm.WRITE, **members: Any
) -> AsyncIterator[tuple[BlockNode, BlockBackend]]:
    """Open a node with these options and attach a backend."""
    graph = Graph()
    node = await graph.add(options(node_name="disk", **members))
    backend = BlockBackend("test", perm)
    try:
        backend.attach(graph, node)
        yield node, backend
    finally:
        await backend.detach()
        await graph.close()


def make_package(directory: Path, module: str, text: str, **drivers: str) -> None:
    """Lay a package out as an installer does; `drivers` are names and classes (`_` for `-`)."""
    (directory / f"{module}.py").write_text(text)
    info = directory / f"{module}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
    lines = [f"{name.replace('_', '-')} = {module}:{value}" for name, value in drivers.items()]
    (info / "entry_points.txt").write_text("\n".join(["[vhostblk.drivers]", *lines, ""]))

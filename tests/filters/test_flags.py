# SPDX-License-Identifier: Apache-2.0
"""Every filter passes on flushes, and the flags of durable writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import RW, MemoryNode, options, run, write_bytes
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.node import BlockLimits
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.iovec import IoVec
from vhostblk.schema.blockdev import BlockdevDiscardOptions
from vhostblk.schema.throttle import UNLIMITED

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20

FILTERS: dict[str, dict[str, Any]] = {
    "raw": {"file": "memory"},
    "throttle": {"file": "memory", "throttle_group": "group"},
    "copy-on-read": {"file": "memory"},
    "copy-before-write": {"file": "memory", "target": "target"},
    "preallocate": {"file": "memory"},
    "compress": {"file": "memory"},
    "blkdebug": {"image": "memory"},
    "blklogwrites": {"file": "memory", "log": "log"},
    "quorum": {"children": ["memory", "memory2"], "vote_threshold": 2},
}


class Scheme:
    """A filter on a node in memory, and its user."""

    def __init__(self, graph: Graph, backend: BlockBackend, memory: MemoryNode) -> None:
        self.graph, self.backend, self.memory = graph, backend, memory

    async def done(self, request: Any) -> list[str]:
        """Make a request; return the requests that the node below got."""
        self.memory.log.clear()
        await request
        return self.memory.log


def memory(graph: Graph, name: str) -> MemoryNode:
    node = MemoryNode(SIZE, BlockLimits(), discard=BlockdevDiscardOptions.UNMAP)
    node.native_flags = WriteFlags.MAY_UNMAP | WriteFlags.WRITE_COMPRESSED
    node.node_name = name
    graph._nodes[name] = node  # directly, as it has no driver's name
    return node


async def scheme(driver: str, log: Path) -> Scheme:
    graph = Graph()
    below = memory(graph, "memory")
    memory(graph, "memory2")
    graph.throttle_groups.add("group", UNLIMITED)
    log.write_bytes(b"")  # noqa: ASYNC240
    await graph.add(options(driver="file", node_name="log", filename=str(log)))
    await graph.add(options(driver="null-co", node_name="target", size=SIZE))
    members = {**FILTERS[driver], "discard": "unmap"}
    node = await graph.add(options(driver=driver, node_name="filter", **members))
    backend = BlockBackend("test", RW)
    backend.attach(graph, node)
    return Scheme(graph, backend, below)


every_filter = pytest.mark.parametrize("driver", FILTERS)


@every_filter
def test_flushes_arrive(tmp_path: Path, driver: str) -> None:
    async def main() -> None:
        s = await scheme(driver, tmp_path / "log")
        await write_bytes(s.backend, 0, b"x" * 4096)
        assert "flush" in await s.done(s.backend.flush())

    run(main)


@every_filter
@pytest.mark.parametrize("how", ["flag", "cache off"])
def test_durable_writes_are_flushed(tmp_path: Path, driver: str, how: str) -> None:
    async def main() -> None:
        s = await scheme(driver, tmp_path / "log")
        flags = WriteFlags.FUA if how == "flag" else WriteFlags.NONE
        s.backend.enable_write_cache = how == "flag"
        iov = IoVec.from_buffers([bytearray(b"x" * 4096)])
        assert (await s.done(s.backend.pwritev(4096, iov, flags)))[-2:] == ["write", "flush"]
        found = await s.done(s.backend.pwrite_zeroes(65536, 65536, flags))
        assert found[-1] == "flush"
        found = await s.done(s.backend.pwrite_zeroes(0, 65536, flags | WriteFlags.MAY_UNMAP))
        assert found[-1] == "flush"

    run(main)


@every_filter
def test_other_writes_are_not_flushed(tmp_path: Path, driver: str) -> None:
    async def main() -> None:
        s = await scheme(driver, tmp_path / "log")
        iov = IoVec.from_buffers([bytearray(b"x" * 4096)])
        assert "flush" not in await s.done(s.backend.pwritev(4096, iov))
        assert "flush" not in await s.done(s.backend.pwrite_zeroes(65536, 65536))

    run(main)


@every_filter
def test_discards_and_leave_to_unmap_arrive(tmp_path: Path, driver: str) -> None:
    async def main() -> None:
        s = await scheme(driver, tmp_path / "log")
        if driver not in ("quorum", "blklogwrites"):  # as in QEMU
            assert await s.done(s.backend.pdiscard(0, 65536)) == ["discard 0+65536"]
        request = s.backend.pwrite_zeroes(0, 65536, WriteFlags.MAY_UNMAP)
        assert "unmap" in await s.done(request)

    run(main)

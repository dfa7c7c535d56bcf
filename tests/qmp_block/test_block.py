# SPDX-License-Identifier: Apache-2.0
"""Commands on block nodes, by their handlers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import RW, write_bytes
from tests.qmp_block.support import execute, ours
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.daemon import Daemon
from vhostblk.qmp.registry import COMMANDS, EVENTS

if TYPE_CHECKING:
    from pathlib import Path

NULL = {"driver": "null-co", "node-name": "n", "size": 1 << 20}


def test_commands_and_events_are_known() -> None:
    assert {"BLOCK_WRITE_THRESHOLD", "BLOCK_IO_ERROR"} <= EVENTS.keys()
    assert COMMANDS["x-blockdev-change"].features == ("unstable",)
    for name in ("blockdev-add", "blockdev-reopen", "query-named-block-nodes", "query-block"):
        COMMANDS[name].types()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("blockdev-del", {"node-name": "x"}, "Failed to find node with node-name='x'"),
        ("block_resize", {"size": 1}, "Cannot find device='' nor node-name=''"),
        ("block_resize", {"size": -1, "node-name": "n"}, "Parameter 'size' expects a >0 size"),
        (
            "block-set-write-threshold",
            {"node-name": "x", "write-threshold": 1},
            "Device 'x' not found",
        ),
        ("x-blockdev-change", {"parent": "n"}, "Either child or node must be specified"),
        (
            "x-blockdev-change",
            {"parent": "n", "child": "a", "node": "b"},
            "The parameters child and node are in conflict",
        ),
        ("x-blockdev-change", {"parent": "n", "child": "a"}, "Node 'n' does not have child 'a'"),
        ("x-blockdev-change", {"parent": "n", "node": "x"}, "Node 'x' not found"),
        (
            "x-blockdev-change",
            {"parent": "n", "node": "n"},
            "The node n does not support adding a child",
        ),
    ],
)
def test_refusals(name: str, arguments: dict[str, Any], message: str) -> None:
    *_, answer = asyncio.run(ours([("blockdev-add", NULL), (name, arguments)]))
    assert answer == {"class": "GenericError", "desc": message}


def test_statistics_are_those_of_exports_on_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    class Export:
        def __init__(self, backend: BlockBackend) -> None:
            self.backend = backend

        def statistics(self) -> dict[int, Any]:
            one = {"operations": 3, "bytes": 4096, "failed": 1, "total_ns": 7}
            return {0: dict.fromkeys(("read", "write", "flush", "unmap"), one)}

    async def main() -> None:
        async with Daemon(blockdevs=[NULL]) as daemon:
            backend = BlockBackend("e", RW)
            backend.attach(daemon.graph, daemon.graph.find("n"))
            with_export = property(lambda _: {"e": Export(backend)})
            monkeypatch.setattr(Daemon, "exports", with_export)
            answer = await execute(daemon, "query-blockstats", {"query-nodes": True})
            stats = answer["return"][0]["stats"]
            assert (stats["rd_operations"], stats["wr_bytes"]) == (3, 4096)
            assert (stats["failed_unmap_operations"], stats["flush_total_time_ns"]) == (1, 7)
            monkeypatch.undo()
            await backend.detach()

    asyncio.run(main())


def test_a_threshold_shows_and_fires(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))

    async def main() -> None:
        node = {"driver": "file", "node-name": "n", "filename": str(path)}
        async with Daemon(blockdevs=[node]) as daemon:
            threshold = {"node-name": "n", "write-threshold": 512}
            await execute(daemon, "block-set-write-threshold", threshold)
            answer = await execute(daemon, "query-named-block-nodes", {"flat": True})
            assert answer["return"][0]["write_threshold"] == 512
            backend = BlockBackend("e", RW)
            backend.attach(daemon.graph, daemon.graph.find("n"))
            await write_bytes(backend, 512, bytes(512))
            answer = await execute(daemon, "query-named-block-nodes", {})
            assert answer["return"][0]["write_threshold"] == 0
            await backend.detach()

    asyncio.run(main())

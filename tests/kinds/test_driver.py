# SPDX-License-Identifier: Apache-2.0
"""A built-in driver is a module and an entry in the table of drivers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.kinds import tables
from tests.qmp.introspection import Introspection
from tests.qmp_exports.direct import execute, refusal
from vhostblk import Daemon
from vhostblk.block.create import create_image
from vhostblk.block.graph.filename import described, full_name
from vhostblk.block.graph.graph import Graph
from vhostblk.cli.help import option_help
from vhostblk.errors import VhostblkError
from vhostblk.handover import configuration
from vhostblk.qmp.commands import load_all
from vhostblk.qmp.registry import COMMANDS, EVENTS
from vhostblk.schema.block_query import BlockStatsSpecific
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.convert import branches_of
from vhostblk.schema.create import BlockdevCreateOptions
from vhostblk.schema.describe import describe
from vhostblk.schema.driver_manifest import DRIVERS
from vhostblk.schema.options import create_options

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DRIVERS, "test-dice", tables.DRIVERS["test-dice"])


def test_options() -> None:
    for union in (BlockdevOptions, BlockdevCreateOptions, BlockStatsSpecific):
        assert "test-dice" in branches_of(union)
    assert "  test-dice" in option_help("blockdev", {}).splitlines()
    assert "  side=<int> (default: 6)" in option_help("blockdev", {"driver": "test-dice"})


def test_clients_can_look_it_up() -> None:
    load_all()
    schema = Introspection(msgspec.to_builtins(describe(COMMANDS.values(), EVENTS)))
    commands = schema.commands()
    assert schema.members(commands["blockdev-add"]["arg-type"])["<test-dice>side"] == "?int"


def test_queries_and_commands() -> None:
    async def main() -> None:
        async with Daemon(blockdevs=["test-dice,node-name=d,side=3"]) as daemon:
            (shown,) = await execute(daemon, "query-named-block-nodes", {})
            assert (shown["drv"], shown["file"]) == ("test-dice", "test-dice:3")
            (stats,) = await execute(daemon, "query-blockstats", {"query-nodes": True})
            assert stats["driver-specific"] == {"driver": "test-dice", "throws": 0}
            check = await execute(daemon, "x-vhostblk-blockdev-check", {"node-name": "d"})
            assert check["leaks"] == 3

    asyncio.run(main())


def test_what_it_can_not() -> None:
    async def main() -> None:
        async with Daemon(blockdevs=["test-dice,node-name=d"]) as daemon:
            amend = {"job-id": "j", "node-name": "d", "options": {"driver": "test-dice"}}
            assert await refusal(daemon, "x-blockdev-amend", amend) == (
                "GenericError",
                "Driver does not support x-blockdev-amend",
            )
            snapshot = {"node-name": "d", "snapshot-file": "/o", "snapshot-node-name": "o"}
            assert await refusal(
                daemon, "blockdev-snapshot-sync", {**snapshot, "format": "test-dice"}
            ) == ("GenericError", "Format driver 'test-dice' does not support image creation")
            assert await refusal(
                daemon, "blockdev-snapshot-sync", {**snapshot, "snapshot-file": "test-dice:1"}
            ) == ("GenericError", "Protocol driver 'test-dice' does not support image creation")

    asyncio.run(main())


def test_creating(tmp_path: Path) -> None:
    word = tmp_path / "word"

    options = create_options({"driver": "test-dice", "path": str(word)})
    asyncio.run(create_image(options, Graph()))
    assert word.read_text() == "thrown"


def test_file_names() -> None:
    assert full_name("test-dice:2", "/image") == "test-dice:2"
    assert described("test-dice:2") == {"driver": "test-dice", "side": 2}


def test_hand_over() -> None:
    async def main() -> None:
        async with Daemon(blockdevs=["test-dice,node-name=d,side=3"]) as daemon:
            (definition,) = configuration.blockdevs(daemon)
            assert (definition["driver"], definition["side"]) == ("test-dice", 3)
        async with Daemon(blockdevs=["test-dice,node-name=d"]) as daemon:
            with pytest.raises(VhostblkError, match="node 'd' keeps its luck in memory"):
                configuration.blockdevs(daemon)

    asyncio.run(main())

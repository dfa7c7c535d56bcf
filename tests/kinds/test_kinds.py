# SPDX-License-Identifier: Apache-2.0
"""Types that follow a recipe have options, help, commands, statistics and hand-over."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.kinds.copying import CopyingExport
from tests.qmp.introspection import Introspection
from tests.qmp_exports.direct import execute, refusal
from vhostblk import Daemon
from vhostblk.cli.help import option_help
from vhostblk.cli.report import table
from vhostblk.errors import VhostblkError
from vhostblk.exports.registry import export_class
from vhostblk.handover import configuration
from vhostblk.handover.wire import Fds
from vhostblk.qmp.commands import load_all
from vhostblk.qmp.registry import COMMANDS, EVENTS
from vhostblk.schema.convert import branches_of
from vhostblk.schema.describe import describe
from vhostblk.schema.export import BlockExportOptions
from vhostblk.schema.object import ObjectOptions
from vhostblk.schema.options import export_options

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("installed")

DISK = "null-co,node-name=disk,size=4096,read-zeroes=on"


def test_an_export(tmp_path: Path) -> None:
    target = tmp_path / "copy"

    async def main() -> None:
        async with Daemon(blockdevs=[DISK]) as daemon:
            definition = {"type": "test-copy", "id": "e", "node-name": "disk"}
            await execute(daemon, "block-export-add", {**definition, "target": str(target)})
            assert target.read_bytes() == bytes(4096)
            (shown,) = await execute(daemon, "query-block-exports")
            assert (shown["id"], shown["type"]) == ("e", "test-copy")
            (statistics,) = await execute(daemon, "x-vhostblk-query-export-stats", {})
            assert statistics == {"id": "e", "node-name": "disk", "clients": 0, "queues": []}
            assert daemon.connect_hints() == {"e": ["-drive", f"file={target},format=raw"]}
            assert configuration.exports(daemon)[0]["target"] == str(target)
            with pytest.raises(VhostblkError, match="'test-copy' can't be handed over"):
                await daemon.suspend_export("e")
            await execute(daemon, "block-export-del", {"id": "e"})
            assert not target.exists()

    asyncio.run(main())


def test_options_of_an_export() -> None:
    assert "test-copy" in branches_of(BlockExportOptions)
    assert "  test-copy" in option_help("export", {}).splitlines()
    assert "  target=<str> (required)" in option_help("export", {"type": "test-copy"}).splitlines()
    with pytest.raises(VhostblkError, match="Parameter 'target' is missing"):
        export_options("test-copy,id=e,node-name=n")
    with pytest.raises(VhostblkError, match="target must be an absolute path"):
        export_options("test-copy,id=e,node-name=n,target=copy")
    options = export_options("test-copy,id=e,node-name=n,target=/copy")
    assert isinstance(options, CopyingExport.options_type)


def test_the_schema_has_the_types() -> None:
    load_all()
    schema = Introspection(msgspec.to_builtins(describe(COMMANDS.values(), EVENTS)))
    commands = schema.commands()
    exports = schema.members(commands["block-export-add"]["arg-type"])
    assert exports["<test-copy>target"] == "string"
    assert exports["<test-reader>path"] == "string"
    objects = schema.members(commands["object-add"]["arg-type"])
    assert objects["<test-lamp>on"] == "?boolean"


def first_sector(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(30)
        client.connect(str(path))
        return client.recv(512, socket.MSG_WAITALL)


def test_an_export_with_statistics(tmp_path: Path) -> None:
    path = tmp_path / "reader"

    async def main() -> None:
        async with Daemon(
            blockdevs=[DISK], exports=[f"test-reader,id=r,node-name=disk,path={path}"]
        ) as daemon:
            assert await asyncio.to_thread(first_sector, path) == bytes(512)
            (found,) = await execute(daemon, "x-vhostblk-query-export-stats", {})
            (queue,) = found["queues"]
            assert (queue["read"]["operations"], queue["read"]["bytes"]) == (1, 512)
            assert daemon.statistics()["r"]["total"]["read"]["bytes"] == 512
            assert any(line.split()[:2] == ["r", "1"] for line in table(daemon.statistics()))
        assert not path.exists()

    asyncio.run(main())


def test_an_export_is_handed_over_by_contract(tmp_path: Path) -> None:
    """Clients that connect meanwhile wait; the taker serves them once only it has the export."""
    path = tmp_path / "reader"
    definition = f"test-reader,id=r,node-name=disk,path={path}"

    async def main() -> None:
        async with Daemon(blockdevs=[DISK]) as giver, Daemon(blockdevs=[DISK]) as taker:
            giver.movable = True
            await giver.add_export(definition)
            assert await asyncio.to_thread(first_sector, path) == bytes(512)
            carried = await giver.suspend_export("r")
            sent = Fds()
            state = carried.encode(sent)
            received, paths = export_class("test-reader").decode(
                state, Fds(os.dup(fd) for fd in sent.all)
            )
            assert paths == [str(path)]
            for listener in carried.listeners:
                listener.own(None)
            carried.close()
            export = await taker.add_export(definition, received)
            (listener,) = received.listeners
            listener.own(str(path))
            client = asyncio.create_task(asyncio.to_thread(first_sector, path))
            export.resume()
            assert await client == bytes(512)
        assert not path.exists()

    asyncio.run(main())


def test_an_object() -> None:
    async def main() -> None:
        async with Daemon(objects=["test-lamp,id=l"]) as daemon:
            at = {"path": "/objects/l", "property": "on"}
            assert await execute(daemon, "qom-get", at) is False
            await execute(daemon, "qom-set", {**at, "value": True})
            assert await execute(daemon, "qom-get", at) is True
            assert await refusal(daemon, "qom-set", {**at, "value": 1}) == (
                "GenericError",
                "Invalid parameter type for 'on', expected: boolean",
            )
            assert configuration.objects(daemon) == [
                {"qom-type": "test-lamp", "id": "l", "on": True}
            ]
            types = await execute(daemon, "qom-list-types", {"implements": "user-creatable"})
            assert "test-lamp" in [each["name"] for each in types]
            await execute(daemon, "object-del", {"id": "l"})
            assert not daemon.objects

    asyncio.run(main())


def test_options_of_an_object() -> None:
    assert "test-lamp" in branches_of(ObjectOptions)
    assert (
        "  on=<bool> (default: off)"
        in option_help("object", {"qom-type": "test-lamp"}).splitlines()
    )

# SPDX-License-Identifier: Apache-2.0
"""Types of other packages are what built-in ones are: options, help, commands, statistics."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from tests.kinds.copying import CopyingExport
from tests.qmp_exports.direct import execute, refusal
from vhostblk import Daemon
from vhostblk.cli.help import option_help
from vhostblk.errors import VhostblkError
from vhostblk.handover import configuration
from vhostblk.objects import types
from vhostblk.schema import plugins
from vhostblk.schema.convert import branches_of
from vhostblk.schema.export import BlockExportOptions
from vhostblk.schema.object import ObjectOptions
from vhostblk.schema.options import export_options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENTRY_POINTS = """\
[vhostblk.exports]
test-copy = tests.kinds.copying:CopyingExport
[vhostblk.objects]
test-lamp = tests.kinds.lamp:Lamp
"""
DISK = "null-co,node-name=disk,size=4096,read-zeroes=on"


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    info = tmp_path / "kinds-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kinds\nVersion: 1\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins.OBJECTS, "loaded", {})
    monkeypatch.setattr(plugins.EXPORTS, "loaded", {})
    yield
    types.TYPES.pop("test-lamp", None)
    sys.modules.pop("tests.kinds.lamp", None)


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

# SPDX-License-Identifier: Apache-2.0
"""Drivers of other packages: found by name, listed, described, refused when they are broken."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.block.support import options
from tests.cli.process import ROOT, command, environment
from tests.plugin.support import Memory, make_package
from tests.qmp.introspection import Introspection
from vhostblk.block import registry
from vhostblk.block.errors import BlockError
from vhostblk.cli.help import option_help
from vhostblk.errors import VhostblkError
from vhostblk.qmp.commands import load_all
from vhostblk.qmp.registry import COMMANDS, EVENTS
from vhostblk.schema import plugins
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.convert import from_keyval
from vhostblk.schema.describe import describe
from vhostblk.schema.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXT = """
from enum import Enum
from vhostblk import plugin

class Colour(Enum):
    RED = "red"
    BLUE = "blue"

class Options(plugin.Options, tag="painted", frozen=True):
    file: plugin.BlockdevRef
    size: plugin.Size = 65536
    colour: Colour = Colour.BLUE
    very_deep: bool = False

class Painted(plugin.Driver[Options]):
    options_type = Options
    def size(self): return self.options.size
    async def read(self, offset, length): return bytes(length)

class FileOptions(plugin.Options, tag="file", frozen=True): pass
class File(Painted): options_type = FileOptions
class PlainOptions(plugin.Options, tag="plain", frozen=True): pass
class Plain: options_type = PlainOptions
class NoReadOptions(plugin.Options, tag="no-read", frozen=True): pass
class NoRead(plugin.Driver[NoReadOptions]): options_type = NoReadOptions
class NotAsyncOptions(plugin.Options, tag="not-async", frozen=True): pass
class NotAsync(Painted):
    options_type = NotAsyncOptions
    def read(self, offset, length): return bytes(length)
class AsyncInThreadOptions(plugin.Options, tag="async-in-thread", frozen=True): pass
class AsyncInThread(plugin.SyncDriver[AsyncInThreadOptions]):
    options_type = AsyncInThreadOptions
    def size(self): return 512
    async def read(self, offset, length): return bytes(length)
class NoOptions: pass
"""

NO_OPTIONS = (
    "Driver 'no-options' is not a class with options_type, a struct of options "
    "(paint_shop:NoOptions)"
)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins.DRIVERS, "loaded", {})
    monkeypatch.setattr(plugins.DRIVERS, "registered", {})
    make_package(
        tmp_path,
        "paint_shop",
        TEXT,
        painted="Painted",
        file="File",
        missing="Missing",
        plain="Plain",
        no_read="NoRead",
        not_async="NotAsync",
        async_in_thread="AsyncInThread",
        no_options="NoOptions",
        wrong_tag="Painted",
    )
    yield tmp_path
    sys.modules.pop("paint_shop", None)


@pytest.mark.usefixtures("installed")
def test_a_driver_is_found_by_its_name_with_typed_options() -> None:
    painted: Any = options(driver="painted", file="below", size=512)
    assert (painted.size, painted.colour.value, painted.file) == (512, "blue", "below")
    tree: dict[str, object] = {
        "driver": "painted",
        "size": "4k",
        "file": {"driver": "null-co"},
        "very-deep": "on",
    }
    painted = from_keyval(BlockdevOptions, tree)
    assert (painted.size, painted.very_deep, painted.file.size) == (4096, True, 1 << 30)
    assert registry.driver_class("painted").driver == "painted"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "Parameter 'file' is missing"),
        ({"file": "a", "colour": "green"}, "Parameter 'colour' does not accept value 'green'"),
        ({"file": "a", "size": "x"}, "Parameter 'size' expects uint64"),
        ({"file": "a", "hue": 1}, "Parameter 'hue' is unexpected"),
    ],
)
def test_options_are_refused_in_qemus_words(members: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        options(driver="painted", **members)
    assert str(caught.value) == message


@pytest.mark.usefixtures("installed")
def test_built_in_drivers_go_first() -> None:
    assert registry.driver_class("file").__module__ == "vhostblk.block.drivers.file"
    assert BlockdevOptions.branch_names().count("file") == 1


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "Unknown driver 'absent'"),
        (
            "missing",
            "Driver 'missing' can't be loaded: module 'paint_shop' has no attribute 'Missing'",
        ),
        (
            "no-options",
            NO_OPTIONS,
        ),
        ("wrong-tag", "Driver 'wrong-tag' has options with the tag 'painted' (paint_shop:Painted)"),
        (
            "plain",
            "Driver 'plain': Plain derives neither from vhostblk.plugin.Driver nor from SyncDriver",
        ),
        ("no-read", "Driver 'no-read': NoRead has no read and no size"),
        ("not-async", "Driver 'not-async': read() must be a coroutine function (async def)"),
        ("async-in-thread", "Driver 'async-in-thread': read() must be a plain function"),
    ],
)
def test_what_is_no_driver_is_refused(name: str, message: str) -> None:
    with pytest.raises(VhostblkError) as caught:
        registry.driver_class(name)
    assert str(caught.value) == message


def test_a_name_offered_twice_is_refused(
    installed: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other")
    make_package(other, "rival", TEXT, painted="Painted")
    monkeypatch.syspath_prepend(other)
    with pytest.raises(OptionError, match="more than once: by paint_shop:Painted, rival:Painted"):
        registry.driver_class("painted")
    monkeypatch.setattr(sys, "path", [str(installed), *sys.path[1:]])
    assert registry.driver_class("painted").driver == "painted"


@pytest.mark.usefixtures("installed")
def test_help_lists_plug_ins_and_logs_broken_ones(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        listing = option_help("blockdev", {}).splitlines()
    assert "  painted" in listing
    assert "  raw" in listing
    assert "  missing" not in listing
    assert sorted(caplog.messages) == [
        "Driver 'missing' can't be loaded: module 'paint_shop' has no attribute 'Missing'",
        NO_OPTIONS,
        "Driver 'wrong-tag' has options with the tag 'painted' (paint_shop:Painted)",
    ]
    lines = option_help("blockdev", {"driver": "painted"}).splitlines()
    assert "  file=<BlockdevRef> (required)" in lines
    assert "  size=<size> (default: 65536)" in lines
    assert "  colour=<red|blue> (default: blue)" in lines
    assert "  very-deep=<bool> (default: off)" in lines


def test_registered_drivers_need_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins.DRIVERS, "registered", {})
    plugins.register(Memory)
    assert "test-memory" in BlockdevOptions.branch_names()
    assert registry.driver_class("test-memory").driver == "test-memory"
    with pytest.raises(OptionError, match="not a class with options_type"):
        plugins.register(BlockError)


def test_entry_points_are_not_looked_at_for_built_in_drivers() -> None:
    program = (
        "import sys\n"
        "from vhostblk.schema.options import blockdev_options\n"
        "blockdev_options('raw,node-name=a,file.driver=file,file.filename=b')\n"
        "import vhostblk.daemon\n"
        "assert 'importlib.metadata' not in sys.modules\n"
        "import vhostblk.plugin\n"
        "assert 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.usefixtures("installed")
def test_introspection_describes_plug_ins() -> None:
    load_all()
    schema = Introspection(msgspec.to_builtins(describe(COMMANDS.values(), EVENTS)))
    members = schema.members(schema.commands()["blockdev-add"]["arg-type"])
    assert members["<painted>file"] == "alternate"
    assert members["<painted>size"] == "?int"
    assert members["<painted>colour"] == "?enum"
    assert members["<painted>very-deep"] == "?boolean"


def test_the_command_line_finds_installed_packages(installed: Path) -> None:
    path = os.pathsep.join([environment()["PYTHONPATH"], str(installed)])
    done = subprocess.run(
        command("--blockdev", "painted,help"),
        env={**environment(), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "  very-deep=<bool> (default: off)" in done.stdout.splitlines()


def test_the_readme_shows_the_example() -> None:
    example = ROOT / "examples" / "function-disk" / "function_disk.py"
    assert f"```python\n{example.read_text()}```\n" in (ROOT / "README.md").read_text()
    assert len(example.read_text().splitlines()) <= 30

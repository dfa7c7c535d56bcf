# SPDX-License-Identifier: Apache-2.0
"""The same commands on vhostblk's handlers and on QEMU's storage daemon."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import shutil
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.differential.daemon import Daemon as Client
from tests.qmp_exports.daemons import QEMU_10
from vhostblk.daemon import Daemon
from vhostblk.errors import VhostblkError
from vhostblk.qmp.errors import error_class
from vhostblk.qmp.registry import COMMANDS
from vhostblk.schema.convert import from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.qmp_exports.daemons import Program
    from vhostblk.events import Event

for area in (
    "bitmaps",
    "block",
    "block_query",
    "exports",
    "images",
    "jobs",
    "objects",
    "snapshot",
    "transaction",
):
    importlib.import_module(f"vhostblk.qmp.commands.{area}")

#: A command's name and arguments.
Call = tuple[str, dict[str, Any]]


async def execute(daemon: Daemon, name: str, arguments: dict[str, Any]) -> Any:
    """Run one of our commands; return its answer, or its error as on the wire."""
    command = COMMANDS[name]
    schema, _ = command.types()
    try:
        if schema is None:
            answer = await command.handler(daemon)
        else:
            answer = await command.handler(daemon, from_json(schema, arguments))
    except VhostblkError as error:
        return {"class": error_class(error), "desc": str(error)}
    return {"return": {} if answer is None else msgspec.to_builtins(answer)}


async def ours(calls: Sequence[Call], events: list[Event] | None = None) -> list[Any]:
    """Run commands on a daemon of ours."""
    async with Daemon() as daemon:
        if events is not None:
            daemon.events.listen(events.append)
        return [normalized(await execute(daemon, *call)) for call in calls]


def theirs(program: Program, calls: Sequence[Call]) -> list[Any]:
    """Run commands on QEMU's daemon."""
    with closing(Client(program, Path(os.devnull))) as daemon:
        answers = [daemon.execute(name, **arguments) for name, arguments in calls]
    return [normalized(answer.get("error", answer)) for answer in answers]


def normalized(value: Any) -> Any:
    """Take out names that were made up."""
    return json.loads(re.sub(r"#block\d+", "#block", json.dumps(value)))


def check_answers(
    directory: Path, script: Callable[[Path], list[Call]], reduced: Callable[[Any], Any]
) -> None:
    """Have both daemons answer alike, as far as `reduced` leaves it of an answer.

    `script` makes images in a directory, and returns the calls that use them.
    """
    if not QEMU_10.available or shutil.which("qemu-img") is None:
        pytest.skip(f"{QEMU_10.name} or qemu-img is not installed")
    mine, qemus = directory / "mine", directory / "qemu"
    mine.mkdir()
    qemus.mkdir()
    calls = script(mine)
    expected = theirs(QEMU_10, script(qemus))
    for call, answer, other in zip(calls, asyncio.run(ours(calls)), expected, strict=True):
        text = json.dumps(reduced(other)).replace(str(qemus), str(mine))
        assert json.loads(json.dumps(reduced(answer))) == json.loads(text), call

# SPDX-License-Identifier: Apache-2.0
"""A QMP command is a struct and a coroutine."""

from __future__ import annotations

import asyncio
import importlib
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.qmp.introspection import Introspection
from tests.qmp_exports.direct import execute
from vhostblk import Daemon
from vhostblk.qmp.registry import COMMANDS, EVENTS
from vhostblk.schema.convert import from_json
from vhostblk.schema.describe import describe
from vhostblk.schema.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "x-test-switch-lamps"

pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    module = "tests.kinds.switching.commands"
    importlib.import_module(module)
    yield
    del COMMANDS[NAME], EVENTS["TEST_LAMP_SWITCHED"], sys.modules[module]


def test_it_is_carried_out() -> None:
    async def main() -> None:
        async with Daemon(objects=["test-lamp,id=a", "test-lamp,id=b,on=on"]) as daemon:
            told: list[str] = []
            daemon.events.listen(lambda happened: told.append(happened.name))
            answer = await execute(daemon, NAME, {"on": True})
            assert answer == [{"id": "a", "was-on": False}]
            assert told == ["TEST_LAMP_SWITCHED"]
            assert await execute(daemon, NAME, {"on": True}) == []

    asyncio.run(main())


def test_arguments_are_checked() -> None:
    schema, _ = COMMANDS[NAME].types()
    with pytest.raises(OptionError, match="Parameter 'on' is missing"):
        from_json(schema, {})


def test_clients_can_look_it_up() -> None:
    schema = Introspection(msgspec.to_builtins(describe(COMMANDS.values(), EVENTS)))
    command = schema.commands()[NAME]
    assert command["features"] == ["unstable"]
    assert schema.members(command["arg-type"]) == {"on": "boolean"}
    answer = schema.type(command["ret-type"])
    assert schema.members(answer["element-type"]) == {"id": "string", "was-on": "boolean"}

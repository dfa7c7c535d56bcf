# SPDX-License-Identifier: Apache-2.0
"""`query-qmp-schema`: complete, sound, and QEMU's where QEMU has the same."""

from __future__ import annotations

import json
import shutil
import subprocess
from enum import Enum
from typing import Any

import msgspec
import pytest

from tests.qmp.introspection import Introspection
from vhostblk.qmp.commands import load_all
from vhostblk.qmp.registry import COMMANDS, EVENTS, Command
from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.describe import describe


def ours() -> Introspection:
    load_all()
    return Introspection(msgspec.to_builtins(describe(COMMANDS.values(), EVENTS)))


class Colour(Enum):
    """An enumeration."""

    RED = "red"


class Base(QapiStruct, tag_field="kind", kw_only=True, frozen=True):
    """Common to all branches."""

    name: str


class Plain(Base, tag="plain", kw_only=True, frozen=True):
    """Nothing else."""


class Rich(Base, tag="rich", kw_only=True, frozen=True):
    """Everything else, itself included."""

    colours: list[Colour] | UnsetType = UNSET
    child: str | Plain | Rich | None = None
    anything: Any = None


async def take(arguments: Plain | Rich) -> list[int]:
    return []


def test_types() -> None:
    answer = describe([Command("take", take, True, ("unstable",))], {"HAPPENED": None})
    schema = Introspection(msgspec.to_builtins(answer))
    take_info = schema.commands()["take"]
    assert take_info["allow-oob"] is True
    assert take_info["features"] == ["unstable"]
    assert take_info["ret-type"] == "[int]"
    union = schema.type(take_info["arg-type"])
    assert (union["tag"], [member["name"] for member in union["members"]]) == (
        "kind",
        ["kind", "name"],
    )
    assert schema.members(take_info["arg-type"], depth=1) == {
        "kind": "enum",
        "name": "string",
        "<rich>colours": "?[enum]",
        "<rich>child": "?alternate",
        "<rich>anything": "?value",
    }
    event = schema.entities[True, "HAPPENED"]
    assert schema.type(event["arg-type"])["members"] == []


class Answer(QapiStruct, kw_only=True, frozen=True):
    """What `get` returns."""

    always: int = 0
    sometimes: int | UnsetType = UNSET


async def get(arguments: Answer) -> Answer:
    return arguments


def test_answers_leave_out_what_is_unset_only() -> None:
    schema = Introspection(msgspec.to_builtins(describe([Command("get", get)], {})))
    info = schema.commands()["get"]
    assert schema.members(info["arg-type"]) == {"always": "?int", "sometimes": "?int"}
    assert schema.members(info["ret-type"]) == {"always": "int", "sometimes": "?int"}


def test_every_command_and_event_is_described() -> None:
    schema = ours()
    assert set(schema.commands()) == set(COMMANDS)
    assert {(True, name) for name in EVENTS} < set(schema.entities)


#: What the installed daemon may not have yet, or has besides; by beginning of name.
ADDITIONS = ("x-vhostblk-",)


@pytest.mark.skipif(shutil.which("qemu-storage-daemon") is None, reason="no qemu-storage-daemon")
def test_members_are_those_of_the_real_daemon() -> None:
    binary = shutil.which("qemu-storage-daemon")
    assert binary is not None
    done = subprocess.run(
        [binary, "--chardev", "stdio,id=c", "--monitor", "c"],
        input="{'execute':'qmp_capabilities'}{'execute':'query-qmp-schema'}{'execute':'quit'}",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    (answer,) = (
        reply["return"]
        for reply in map(json.loads, done.stdout.splitlines())
        if reply.get("return")
    )
    theirs = Introspection(answer)
    schema = ours()
    for name in ("qmp_capabilities", "query-version", "query-commands", "quit"):
        for kind in ("arg-type", "ret-type"):
            mine, real = schema.commands()[name][kind], theirs.commands()[name][kind]
            assert schema.members(mine) == theirs.members(real)

# SPDX-License-Identifier: Apache-2.0
"""Random values of QMP schema types: most of them valid, some wrong on purpose."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import msgspec

from vhostblk.qmp.commands import load_all
from vhostblk.qmp.registry import COMMANDS, EVENTS
from vhostblk.schema.describe import describe

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.differential.world import World

Info = dict[str, Any]

#: Members that are never set: other tests cover them, or some builds of QEMU lack them.
_LEFT_OUT = frozenset({"encrypt", "config", "x-check-cache-dropped", "iothread", "fixed-iothread"})
#: The probability with which optional members are set; for others it is `_RARELY`.
_OFTEN = {"discard": 0.5, "read-only": 0.2, "detect-zeroes": 0.15, "granularity": 0.5}
_RARELY = 0.08
_NEVER_QUITE = {"active": 0.02, "force-share": 0.0, "inject-error": 0.0, "set-state": 0.0}

SIZES = (0, 512, 65536, 1 << 20, (1 << 20) + 512, 3 << 20, 4 << 20, 6 << 20)
NUMBERS = (0, 1, 2, 3, 511, 512, 1024, 4096, 65536, 1 << 20, 1 << 31, 1 << 32)
ODD_NUMBERS = (-1, 1 << 63, (1 << 63) - 1, (1 << 64) - 1, -(1 << 63))


@functools.cache
def _schema() -> dict[str, Info]:
    load_all()
    answer = msgspec.to_builtins(describe(COMMANDS.values(), EVENTS))
    return {info["name"]: info for info in answer if info["meta-type"] != "event"}


class Values:
    """Makes arguments for commands."""

    def __init__(self, chance: random.Random, world: World) -> None:
        self.chance = chance
        self.world = world
        self._names = 0
        #: Functions that make the values of members with certain names.
        self._hints: dict[str, Callable[[], Any]] = {
            "node-name": self.some_node,
            "node": self.some_node,
            "device": self.some_node,
            "overlay": self.some_node,
            "bottom": self.some_node,
            "filename": self.some_file,
            "throttle-group": self.some_group,
            "size": self.some_size,
            "offset": lambda: self.choose(0, 0, 512, 65536, 1 << 20),
            "vote-threshold": lambda: self.choose(1, 1, 2, 2, 3, 0),
            "bitmap": self.some_bitmap,
            "aio": lambda: self.choose("threads", "io_uring"),
        }

    # Choices.

    def choose(self, *items: Any) -> Any:
        """Return one of the items."""
        return self.chance.choice(items)

    def likely(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.chance.random() < probability

    def some_node(self) -> str:
        """Return the name of a node; sometimes one that doesn't exist."""
        names = list(self.world.nodes)
        if not names or self.likely(0.02):
            return str(self.choose("nobody", "", "e0"))
        return str(self.chance.choice(names))

    def new_node(self) -> str:
        """Return a name that is not in use yet; sometimes an invalid one."""
        if self.likely(0.02):
            return str(self.choose("0x", "a b", "x" * 32, self.some_node()))
        self._names += 1
        return f"n{self._names}"

    def some_file(self) -> str:
        """Return the name of an image; sometimes one that doesn't exist."""
        if self.likely(0.03):
            return str(self.choose("missing", ".", ""))
        return str(self.chance.choice(list(self.world.files)))

    def some_group(self) -> str:
        """Return the name of a throttle group, if there is one."""
        return str(self.chance.choice([*self.world.groups, "g0"]))

    def some_size(self) -> int:
        """Return a size of a disk."""
        return int(self.chance.choice(SIZES))

    def some_bitmap(self) -> dict[str, str]:
        """Return a reference to a bitmap, most often to one that exists."""
        there = [
            {"node": name, "name": bitmap}
            for name, node in self.world.nodes.items()
            for bitmap in node.bitmaps
        ]
        if there and self.likely(0.95):
            return dict(self.chance.choice(there))
        return {"node": self.some_node(), "name": "b0"}

    # By schema.

    def arguments(self, command: str, **given: Any) -> dict[str, Any]:
        """Make the arguments of a command; `given` ones stay as they are."""
        return self.object(_schema()[command]["arg-type"], given)

    def node(self, driver: str, *, inline: bool = False, **given: Any) -> dict[str, Any]:
        """Make the definition of a node."""
        given = {"driver": driver, **given}
        if not inline or self.likely(0.3):
            given.setdefault("node-name", self.new_node())
        made = self.object(_schema()["blockdev-add"]["arg-type"], given)
        if inline and "node-name" not in given:
            made.pop("node-name", None)
        return made

    def create_options(self, **given: Any) -> dict[str, Any]:
        """Make the options of `blockdev-create`."""
        members = _schema()[_schema()["blockdev-create"]["arg-type"]]["members"]
        (options,) = (member["type"] for member in members if member["name"] == "options")
        return self.object(options, given)

    def object(self, type_name: str, given: dict[str, Any]) -> dict[str, Any]:
        """Make an object of the schema."""
        info = _schema()[type_name]
        made = dict(given)
        members = list(info["members"])
        if "tag" in info:
            tag = info["tag"]
            if tag not in made:
                made[tag] = self.chance.choice(info["variants"])["case"]
            for variant in info["variants"]:
                if variant["case"] == made[tag]:
                    members += _schema()[variant["type"]]["members"]
        for member in members:
            name = member["name"]
            if name not in made and self._wanted(member):
                value = self.value(member["type"], name)
                # QEMU accepts an empty object or list for a member that it doesn't know.
                if value not in ({}, []) or "default" not in member:
                    made[name] = value
        return made

    def value(self, type_name: str, name: str = "") -> Any:
        """Make a value of a type, for a member of that name."""
        if name in self._hints:
            return self._hints[name]()
        info = _schema()[type_name]
        match info["meta-type"]:
            case "builtin":
                return self._builtin(info["json-type"])
            case "enum":
                return self.chance.choice(info["values"])
            case "array":
                count = self.choose(0, 1, 2, 2, 3)
                return [self.value(info["element-type"], name) for _ in range(count)]
            case "alternate":
                chosen = self.chance.choice(info["members"])["type"]
                return self.value(chosen)
            case _:
                return self.object(type_name, {})

    def _wanted(self, member: Info) -> bool:
        name = member["name"]
        if "default" not in member:
            return True
        if name in _LEFT_OUT or name.startswith("x-vhostblk-"):
            return False
        return self.likely(_NEVER_QUITE.get(name, _OFTEN.get(name, _RARELY)))

    def _builtin(self, kind: str) -> Any:
        match kind:
            case "boolean":
                return self.choose(True, False)
            case "int" | "number":
                return self.chance.choice(ODD_NUMBERS if self.likely(0.02) else NUMBERS)
            case "null":
                return None
            case _:
                return self.choose("b0", "b1", "s0", "x")

    # Wrong on purpose.

    def spoil(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return arguments with a mistake in them."""
        spoilt = dict(arguments)
        name = self.chance.choice([*arguments, "bogus"])
        match self.choose("delete", "type", "nested", "unknown"):
            case "delete":
                spoilt.pop(name, None)
            case "type":
                spoilt[name] = self.choose(1, "x", True, None, [], {}, 1.5)
            case "nested" if isinstance(arguments.get(name), dict):
                spoilt[name] = self.spoil(arguments[name])
            case _:
                spoilt["bogus"] = 1
        return spoilt

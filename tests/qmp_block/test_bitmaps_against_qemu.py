# SPDX-License-Identifier: Apache-2.0
"""Commands on dirty bitmaps: vhostblk answers what QEMU's storage daemon answers.

An empty list of bitmaps to merge is left out, as QEMU 10 dies of it.
"""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import pytest

from tests.qmp_block.support import Call, ours, theirs
from tests.qmp_exports.daemons import QEMU_10

importlib.import_module("vhostblk.qmp.commands.bitmaps")

NODES: Call = ("query-named-block-nodes", {"flat": True})


def _add(name: Any, node: str = "n", **members: Any) -> Call:
    return "block-dirty-bitmap-add", {"node": node, "name": name, **members}


def _do(what: str, name: str, node: str = "n") -> Call:
    return f"block-dirty-bitmap-{what}", {"node": node, "name": name}


def _merge(target: str, *bitmaps: Any, node: str = "n") -> Call:
    return "block-dirty-bitmap-merge", {"node": node, "target": target, "bitmaps": list(bitmaps)}


def _hash(name: str, node: str = "n") -> Call:
    return "x-debug-block-dirty-bitmap-sha256", {"node": node, "name": name}


SCRIPT: list[Call] = [
    ("blockdev-add", {"driver": "null-co", "node-name": "n", "size": (1 << 20) + 512}),
    ("blockdev-add", {"driver": "null-co", "node-name": "m", "size": 5 << 30}),
    ("blockdev-add", {"driver": "null-co", "node-name": "empty", "size": 0}),
    ("blockdev-add", {"driver": "raw", "node-name": "r", "file": "n"}),
    _add(""),
    _add("a", "nobody"),
    _add("a"),
    _add("a"),
    _add("a", "r"),
    _add("c" * 1024),
    _add("c" * 1023),
    _add("ä" * 512),
    _add(5),
    *(_add("x", granularity=value) for value in (0, 256, 1000, -1, 1 << 32, "1")),
    _add("coarse", granularity=1 << 31, disabled=True),
    _add("fine", granularity=512, disabled=False, persistent=False),
    _add("kept", persistent=True),
    _add("a", persistent=True),
    _add("kept", "r", persistent=True),
    *(_add(f"m{bits}", "m", granularity=1 << bits) for bits in (9, 20, 31)),
    _add("none", "empty"),
    NODES,
    *(_hash(name) for name in ("a", "coarse", "fine", "nothing")),
    *(_hash(f"m{bits}", "m") for bits in (9, 20, 31)),
    _hash("none", "empty"),
    _hash("a", "nobody"),
    _merge("a", "fine", "coarse"),
    _merge("a", {"node": "n", "name": "fine"}, "a"),
    _merge("a", {"node": "m", "name": "m9"}),
    _merge("a", "fine", "nothing"),
    _merge("a", {"node": "nobody", "name": "a"}),
    _merge("a", {"node": "m", "name": "nothing"}),
    _merge("a", {"node": "m"}),
    _merge("nothing", "a"),
    _merge("a", "a", node="nobody"),
    *(_do(what, "a") for what in ("disable", "disable")),
    NODES,
    *(_do(what, "a") for what in ("enable", "enable", "clear")),
    *(
        _do(what, *where)
        for what in ("enable", "disable", "clear", "remove")
        for where in (("nothing",), ("a", "nobody"))
    ),
    _do("remove", "a"),
    _do("remove", "a"),
    _do("clear", "a", "r"),
    NODES,
    ("blockdev-del", {"node-name": "r"}),
    ("blockdev-del", {"node-name": "n"}),
    NODES,
]


def test_answers_are_the_same() -> None:
    if not QEMU_10.available:
        pytest.skip(f"{QEMU_10.name} is not installed")
    expected = theirs(QEMU_10, SCRIPT)
    for call, answer, other in zip(SCRIPT, asyncio.run(ours(SCRIPT)), expected, strict=True):
        assert answer == other, call

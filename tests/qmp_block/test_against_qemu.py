# SPDX-License-Identifier: Apache-2.0
"""Changes of nodes in depth: vhostblk answers what QEMU's storage daemon answers.

`tests.qmp_exports.script` goes through all commands on the wire; here is what happens to nodes that
are in use. What differs is not in these scripts: messages about image locks also name the image;
an option that is given its present default explicitly is not a change (`locking`, `drop-cache`);
where `discard` is left out it goes back to its default as all options do, which QEMU forgets; nodes
above one that is resized have the new size at once; and inactivating all leaves out no node, as
QEMU does where some have exports.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.qmp_block.support import Call, ours, theirs
from tests.qmp_exports.daemons import QEMU_7, QEMU_10, Program

if TYPE_CHECKING:
    from pathlib import Path

F: dict[str, Any] = {"driver": "file", "node-name": "f", "filename": "{dir}/disk.img"}
R: dict[str, Any] = {"driver": "raw", "node-name": "r", "file": "f"}
N: dict[str, Any] = {"driver": "null-co", "node-name": "n", "size": 1 << 20}
INLINE: dict[str, Any] = {
    "driver": "raw",
    "node-name": "i",
    "file": {"driver": "null-co", "size": 1 << 20},
}
ADD: list[Call] = [("blockdev-add", node) for node in (F, R, N, INLINE)]
NODES: Call = ("query-named-block-nodes", {})
GRAPH: Call = ("x-debug-query-block-graph", {})


def export(name: str, node: str, writable: bool) -> Call:
    addr = {"type": "unix", "path": f"{{dir}}/{name}.sock"}
    return "block-export-add", {
        "type": "vhost-user-blk",
        "id": name,
        "node-name": node,
        "addr": addr,
        "writable": writable,
    }


def reopen(*definitions: dict[str, Any]) -> Call:
    return "blockdev-reopen", {"options": list(definitions)}


def active(name: str | None, value: bool) -> Call:
    where = {} if name is None else {"node-name": name}
    return "blockdev-set-active", {**where, "active": value}


REOPEN = [
    *ADD,
    NODES,
    GRAPH,
    *(reopen(*nodes) for nodes in ([F], [R], [R, F], [F, F])),
    reopen({**F, "read-only": True}),
    reopen({**R, "read-only": True}),
    NODES,
    reopen(R),
    reopen(R, F),
    reopen({**F, "cache": {"no-flush": True}}),
    reopen({**F, "aio": "threads"}),
    reopen({**F, "filename": "/nonexistent"}),
    reopen({**F, "locking": "off"}),
    reopen({**F, "discard": "unmap", "detect-zeroes": "unmap"}),
    reopen({**N, "node-name": "f"}),
    reopen({"driver": "null-co"}),
    reopen({**N, "node-name": "x"}),
    reopen({**N, "size": 2048}),
    reopen({"driver": "null-co", "node-name": "n"}),
    reopen({**N, "read-zeroes": True}),
    reopen({**R, "offset": 512}),
    reopen({**R, "size": 1024}),
    NODES,
    reopen({**R, "size": 1025}),
    reopen({**R, "size": 4 << 20}),
    reopen({**R, "offset": 4 << 20}),
    reopen({**R, "file": "n"}),
    GRAPH,
    reopen({**R, "file": "r"}),
    reopen({**R, "file": "i"}),
    reopen({**R, "file": "x"}),
    reopen({**R, "file": {"driver": "null-co"}}),
    reopen({**INLINE, "file": "r"}),
    reopen({**INLINE, "read-only": True}),
    NODES,
    reopen({**INLINE, "file": "f"}),
    NODES,
    GRAPH,
]

IN_USE = [
    *ADD,
    ("blockdev-add", {"driver": "raw", "node-name": "w", "file": "f", "size": 4096}),
    export("reader", "i", False),
    ("query-blockstats", {}),
    ("query-blockstats", {"query-nodes": True}),
    ("blockdev-del", {"node-name": "i"}),
    ("blockdev-del", {"node-name": "f"}),
    ("block_resize", {"node-name": "r", "size": 2 << 20}),
    ("block_resize", {"node-name": "f", "size": 2 << 20}),
    ("blockdev-del", {"node-name": "w"}),
    ("block_resize", {"node-name": "f", "size": 2 << 20}),
    ("block_resize", {"node-name": "r", "size": 3 << 20}),
    ("block_resize", {"node-name": "n", "size": 2 << 20}),
    NODES,
    export("writer", "r", True),
    reopen({**R, "read-only": True}),
    reopen({**F, "read-only": True}),
    reopen({**R, "read-only": True}, {**F, "read-only": True}),
    reopen({**R, "file": "n"}),
    reopen({**R, "size": 4096}),
    reopen(R),
    reopen({**F, "cache": {"no-flush": True}}),
    NODES,
]

ACTIVE = [
    *ADD,
    export("reader", "i", False),
    active("i", False),
    active("f", False),
    active("r", False),
    active("r", False),
    active("f", False),
    NODES,
    ("block_resize", {"node-name": "f", "size": 4096}),
    ("blockdev-add", {**R, "node-name": "x"}),
    ("blockdev-add", {**R, "node-name": "y", "active": False}),
    active(None, False),
    active("x", True),
    active("r", True),
    active(None, True),
    NODES,
    export("writer", "r", True),
    active("r", False),
    active(None, False),
    active("f", False),
]


#: A disk of two blocks and a half.
HALF_BLOCK: dict[str, Any] = {
    "driver": "blkdebug",
    "node-name": "b",
    "align": 4096,
    "image": {"driver": "raw", "file": "f", "size": 10240},
}
LOGGED = {"driver": "blklogwrites", "file": "r", "log": "n", "log-sector-size": 4096}
LAST_BLOCK = [
    *ADD,
    ("blockdev-add", HALF_BLOCK),
    export("reader", "b", False),
    export("writer", "b", True),
    ("blockdev-add", {"driver": "raw", "node-name": "w", "file": "b", "size": 4096}),
    export("window", "w", True),
    ("blockdev-add", {"driver": "copy-on-read", "node-name": "c", "file": "b"}),
    ("block_resize", {"node-name": "r", "size": 10240}),
    ("blockdev-add", {**LOGGED, "node-name": "l"}),
    export("log-reader", "l", False),
    export("log-writer", "l", True),
]


def in_directory(calls: list[Call], path: Path) -> list[Call]:
    path.mkdir()
    (path / "disk.img").write_bytes(bytes(1 << 20))

    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: placed(member) for name, member in value.items()}
        if isinstance(value, list):
            return [placed(member) for member in value]
        return value.replace("{dir}", str(path)) if isinstance(value, str) else value

    return [(name, placed(arguments)) for name, arguments in calls]


@pytest.mark.parametrize(
    ("program", "calls"),
    [
        pytest.param(QEMU_7, REOPEN, id="reopen-7"),
        pytest.param(QEMU_10, REOPEN, id="reopen-10"),
        pytest.param(QEMU_7, IN_USE, id="in-use-7"),
        pytest.param(QEMU_10, IN_USE, id="in-use-10"),
        pytest.param(QEMU_10, ACTIVE, id="active-10"),
        pytest.param(QEMU_7, LAST_BLOCK, id="last-block-7"),
        pytest.param(QEMU_10, LAST_BLOCK, id="last-block-10"),
    ],
)
def test_answers_are_the_same(program: Program, calls: list[Call], tmp_path: Path) -> None:
    if not program.available:
        pytest.skip(f"{program.name} is not installed")
    ours_calls = in_directory(calls, tmp_path / "a")
    expected = theirs(program, in_directory(calls, tmp_path / "b"))
    answers = asyncio.run(ours(ours_calls))
    for call, answer, other in zip(calls, answers, expected, strict=True):
        answer = comparable(answer, tmp_path / "a", program.version)
        assert answer == comparable(other, tmp_path / "b", program.version), call


def comparable(value: Any, path: Path, version: int) -> Any:
    """Take out directories, the names of exports' backends, and what 7.2 does not have."""
    if isinstance(value, dict):
        if value.get("type") == "block-backend":
            value = {**value, "name": ""}
        return {
            name: comparable(member, path, version)
            for name, member in value.items()
            if version >= 10 or not _is_new(name)
        }
    if isinstance(value, list):
        return [comparable(member, path, version) for member in value]
    return value.replace(str(path), "") if isinstance(value, str) else value


def _is_new(member: str) -> bool:
    return member in ("active", "format-specific") or "zone_append" in member

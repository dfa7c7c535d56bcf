# SPDX-License-Identifier: Apache-2.0
"""Overlays on nodes: what vhostblk answers, shows and writes is what QEMU's daemon does."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.tools import check, qemu_img
from tests.qmp_block.jobs import run_calls
from tests.qmp_exports.daemons import QEMU_10, VHOSTBLK

if TYPE_CHECKING:
    from pathlib import Path

    from tests.qmp_block.support import Call


def _node(name: str, **members: Any) -> Call:
    file = {"driver": "file", "filename": f"{{dir}}/{name}"}
    return "blockdev-add", {"driver": "qcow2", "node-name": name, "file": file, **members}


def _export(name: str, node: str, *, writable: bool = True) -> Call:
    addr = {"type": "unix", "path": f"{{dir}}/{name}.sock"}
    members = {"id": name, "node-name": node, "writable": writable, "addr": addr}
    return "block-export-add", {"type": "vhost-user-blk", **members}


def _on(node: str, overlay: str) -> Call:
    return "blockdev-snapshot", {"node": node, "overlay": overlay}


def _sync(node: str | None, file: str, name: str | None = "s1", **members: Any) -> Call:
    given = {"node-name": node, "snapshot-file": file, "snapshot-node-name": name, **members}
    return "blockdev-snapshot-sync", {key: value for key, value in given.items() if value}


def _rename(device: str, image: str, name: str) -> Call:
    arguments = {"device": device, "image-node-name": image, "backing-file": name}
    return "change-backing-file", arguments


def _delete(name: str) -> Call:
    return "blockdev-del", {"node-name": name}


NODES: Call = ("query-named-block-nodes", {})
GRAPH: Call = ("x-debug-query-block-graph", {})
NEW = "{dir}/s1"
RAW = {"driver": "raw", "node-name": "r", "file": {"driver": "file", "filename": "{dir}/raw"}}
THROTTLE = {"driver": "throttle", "node-name": "t", "file": "r", "throttle-group": "g"}

SCRIPT: list[Call] = [
    _node("base"),
    _node("o1", backing=None),
    _node("ob", **{"read-only": True}),
    ("blockdev-add", RAW),
    ("object-add", {"qom-type": "throttle-group", "id": "g"}),
    ("blockdev-add", THROTTLE),
    *(_on("base", overlay) for overlay in ("x", "r", "ob", "base", "t")),
    _on("x", "o1"),
    _on("o1", "o1"),
    _delete("ob"),
    _export("e", "base"),
    _on("base", "o1"),
    *(NODES, GRAPH, ("query-block-exports", {})),
    _on("base", "o1"),
    _on("o1", "base"),
    _on("base", "base"),
    _node("o2", backing=None),
    _export("e2", "o2", writable=False),
    _on("base", "o2"),
    _on("o1", "o2"),
    ("block-export-del", {"id": "e2"}),
    _on("base", "o2"),
    _sync(None, NEW, None, device="o1"),
    _sync("o1", NEW, None),
    _sync(None, NEW),
    _sync("x", NEW),
    _sync("base", NEW),
    _sync("o1", NEW, "base"),
    _sync("o1", "{dir}/nowhere/s1"),
    *(_sync("o1", NEW, format=driver) for driver in ("bogus", "raw", "file", "throttle")),
    _sync("o1", "{dir}/raw", format="raw", mode="existing"),
    _sync("o1", "{dir}/raw", mode="existing"),
    _sync("o1", "{dir}/gone", mode="existing"),
    _sync("o1", "{dir}/gone", mode="some"),
    _sync("o1", "foo:x"),
    _sync("o1", NEW, "1"),
    _sync("o1", NEW),
    *(NODES, GRAPH),
    _sync("s1", "{dir}/o3", "o3", mode="existing"),
    _sync("r", "{dir}/s2", "s2"),
    *(NODES, GRAPH),
    *(_rename("o3", image, "y") for image in ("x", "base", "s2")),
    *(_rename(top, "s1", "y") for top in ("x", "s1", "r")),
    _rename("o3", "o3", NEW),
    _rename("o3", "s1", "x" * 1024),
    _rename("o3", "s1", "x" * 1023),
    _rename("o3", "s1", "{dir}/o1"),
    NODES,
    *(_delete(name) for name in ("o1", "s1", "o3", "base")),
    ("block-export-del", {"id": "e"}),
    NODES,
    *(_delete(name) for name in ("o1", "base", "o2")),
    NODES,
]


def _prepare(directory: Path) -> None:
    directory.mkdir()
    for name in ("base", "o1", "o2", "o3"):
        qemu_img("create", "-q", "-f", "qcow2", directory / name, "1M")
    base = directory / "base"
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", directory / "ob")
    qemu_img("create", "-q", "-f", "raw", directory / "raw", "1M")


def _comparable(value: Any) -> Any:
    """Take out how files are kept, how backends are called, and the order of nodes."""
    if isinstance(value, dict):
        left_out = {"actual-size"}
        if value.get("format") == "file":
            left_out.add("virtual-size")
        if value.get("type") == "block-backend":
            left_out.add("name")
        return {name: _comparable(item) for name, item in value.items() if name not in left_out}
    if isinstance(value, list):
        return sorted((_comparable(item) for item in value), key=json.dumps)
    if isinstance(value, str):  # ours says which image is locked
        return re.sub(r"\. Is another process using the image \[.*?\]\?", "", value)
    return value


def test_answers_are_those_of_qemu(tmp_path: Path) -> None:
    if not QEMU_10.available:
        pytest.skip("not installed")
    answers = []
    for program in (VHOSTBLK, QEMU_10):
        directory = tmp_path / program.name
        _prepare(directory)
        answers.append(asyncio.run(run_calls(program, directory, SCRIPT)))
        for name in ("base", "o1", "o3", "s1", "s2"):
            check(directory / name)
    sides = [json.loads(json.dumps(side, sort_keys=True)) for side in answers]
    for call, ours, theirs in zip(SCRIPT, *sides, strict=True):
        assert _comparable(ours) == _comparable(theirs), call

# SPDX-License-Identifier: Apache-2.0
"""What QMP says of qcow2 nodes, and of wrong options and images, is what QEMU's daemon says."""

from __future__ import annotations

import asyncio
import importlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.tools import qemu_img, qemu_io
from tests.qmp_block.support import Call, ours, theirs
from tests.qmp_exports.daemons import QEMU_10

if TYPE_CHECKING:
    from pathlib import Path

importlib.import_module("vhostblk.qmp.commands.snapshot")

SIZE = 1 << 20
NODES: Call = ("query-named-block-nodes", {"flat": True})


def _node(name: str, image: str, **members: Any) -> Call:
    file = {"driver": "file", "node-name": f"{name}-file", "filename": f"{{dir}}/{image}"}
    return "blockdev-add", {"driver": "qcow2", "node-name": name, "file": file, **members}


def _bad(**members: Any) -> Call:
    return _node("bad", "plain.qcow2", **members)


SCRIPT: list[Call] = [
    _bad(**{"l2-cache-entry-size": 1000}),
    _bad(**{"cache-size": 1 << 20, "l2-cache-size": 1 << 19, "refcount-cache-size": 1 << 18}),
    _bad(**{"cache-size": 1 << 10, "l2-cache-size": 1 << 19}),
    _bad(**{"overlap-check": "some"}),
    _bad(**{"data-file": {"driver": "null-co"}}),
    _bad(backing="nobody"),
    _node("bad", "old.qcow2", **{"lazy-refcounts": True}),
    _node("bad", "old.qcow2", **{"discard-no-unref": True}),
    _node("bad", "short"),
    _node("bad", "lost.qcow2"),
    _node("bad", "strange.qcow2"),
    _node("a", "plain.qcow2"),
    _node("b", "old.qcow2", **{"read-only": True}),
    _node("c", "top.qcow2"),
    NODES,
    _node("v", "small.qcow2"),
    ("block_resize", {"node-name": "v", "size": SIZE}),
    ("block_resize", {"node-name": "v", "size": SIZE // 2 + 1024}),
    ("blockdev-del", {"node-name": "v"}),
    ("block_resize", {"node-name": "a", "size": 1000}),
    ("block_resize", {"node-name": "a", "size": 2 << 20}),
    ("blockdev-snapshot-internal-sync", {"device": "nobody", "name": "s"}),
    ("blockdev-snapshot-internal-sync", {"device": "b", "name": "s"}),
    ("blockdev-snapshot-internal-sync", {"device": "a", "name": ""}),
    ("blockdev-snapshot-internal-sync", {"device": "a", "name": "s"}),
    ("blockdev-snapshot-internal-sync", {"device": "a", "name": "s"}),
    # A name that is too long is truncated; the result may exist already.
    ("blockdev-snapshot-internal-sync", {"device": "a", "name": "n" * 256}),
    ("blockdev-snapshot-internal-sync", {"device": "a", "name": "n" * 70_000}),
    ("blockdev-snapshot-internal-sync", {"device": "a", "name": "n" * 255}),
    ("blockdev-snapshot-delete-internal-sync", {"device": "a", "name": "n" * 256}),
    ("blockdev-snapshot-delete-internal-sync", {"device": "a", "id": "n" * 256}),
    ("blockdev-snapshot-delete-internal-sync", {"device": "a"}),
    ("blockdev-snapshot-delete-internal-sync", {"device": "a", "name": "t"}),
    ("blockdev-del", {"node-name": "c"}),
    ("blockdev-del", {"node-name": "b"}),
    ("blockdev-del", {"node-name": "a"}),
    NODES,
]


def _prepare(directory: Path) -> None:
    directory.mkdir()
    for name, form in (
        ("plain", "compat=1.1"),
        ("old", "compat=0.10"),
        ("base", "cluster_size=4k"),
    ):
        qemu_img("create", "-q", "-f", "qcow2", "-o", form, directory / f"{name}.qcow2", SIZE)
    top, base = directory / "top.qcow2", directory / "base.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    qemu_io(top, "write -q 0 64k")
    small, old = directory / "small.qcow2", ["-o", "compat=0.10", "-b", base, "-F", "qcow2"]
    qemu_img("create", "-q", "-f", "qcow2", *old, small, SIZE // 2 + 512)
    lost = directory / "lost.qcow2"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", "gone.raw", "-F", "raw", lost, SIZE)
    strange = bytearray((directory / "plain.qcow2").read_bytes())
    strange[72:80] = (1 << 50).to_bytes(8, "big")
    (directory / "strange.qcow2").write_bytes(strange)
    (directory / "short").write_bytes(b"QFI\xfb\0\0\0\x03")


def _placed(directory: Path) -> list[Call]:
    return [
        (name, json.loads(json.dumps(arguments).replace("{dir}", str(directory))))
        for name, arguments in SCRIPT
    ]


def _comparable(answers: list[Any], directory: Path) -> list[Any]:
    """Take out where the images are, and how the file systems keep them."""
    text = json.dumps(answers).replace(str(directory), "{dir}")
    return [_without_sizes(answer) for answer in json.loads(text)]


def _order(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _without_sizes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_sizes(item) for key, item in value.items() if key != "actual-size"}
    if isinstance(value, list):  # of nodes: in the order in which they came into being
        return sorted((_without_sizes(item) for item in value), key=_order)
    return value


def test_answers_are_those_of_qemu(tmp_path: Path) -> None:
    if not QEMU_10.available:
        pytest.skip("not installed")
    mine, real = tmp_path / "mine", tmp_path / "real"
    for directory in (mine, real):
        _prepare(directory)
    found = _comparable(asyncio.run(ours(_placed(mine))), mine)
    expected = _comparable(theirs(QEMU_10, _placed(real)), real)
    for call, answer, wanted in zip(SCRIPT, found, expected, strict=True):
        assert answer == wanted, call

# SPDX-License-Identifier: Apache-2.0
"""What queries say of images of all forms, and of chains of them, is what QEMU's daemon says."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.tools import qemu_img
from tests.qmp_block.jobs import run_calls
from tests.qmp_exports.daemons import QEMU_10, VHOSTBLK

if TYPE_CHECKING:
    from pathlib import Path

    from tests.qmp_block.support import Call

FORMS = {
    "base": "",
    "v2": "compat=0.10",
    "lazy": "lazy_refcounts=on",
    "dirty": "lazy_refcounts=on",
    "corrupt": "",
    "snapshots": "",
    "extended": "extended_l2=on",
    "zstd": "compression_type=zstd",
    "narrow": "refcount_bits=1",
    "small": "cluster_size=512",
    "data": "data_file={dir}/data.raw",
    "raw-data": "data_file={dir}/raw-data.raw,data_file_raw=on",
}
#: Overlays: what they call the image that they lie on, and its format.
CHAINS = {
    "relative": ("base", "qcow2"),
    "absolute": ("{dir}/base", "qcow2"),
    "deep": ("relative", "qcow2"),
    "on-raw": ("plain", "raw"),
    "lost": ("gone", "qcow2"),
    "json": (
        'json:{"driver":"qcow2","file.driver":"file","file.filename":"{dir}/base"}',
        "qcow2",
    ),
}
DIRTY, CORRUPT = 1, 2


def _set_feature(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[79] |= bit
    path.write_bytes(data)


def _set_times(path: Path) -> None:
    """Give the snapshots times that are the same each time."""
    data = bytearray(path.read_bytes())
    (position,) = struct.unpack_from(">Q", data, 64)
    for number in range(2):
        position = -(-position // 8) * 8
        struct.pack_into(">IIQ", data, position + 16, 1700000000 + number, 5, 3 * 10**9 + 7)
        id_size, name_size = struct.unpack_from(">HH", data, position + 12)
        (extra,) = struct.unpack_from(">I", data, position + 36)
        position += 40 + extra + id_size + name_size
    path.write_bytes(data)


def _prepare(directory: Path) -> None:
    directory.mkdir()

    def placed(text: str) -> str:
        return text.replace("{dir}", str(directory))

    for name, form in FORMS.items():
        options = ["-o", placed(form)] if form else []
        qemu_img("create", "-q", "-f", "qcow2", *options, directory / name, "1M")
    for name, (backing, kind) in CHAINS.items():
        chain = ["-u", "-b", placed(backing), "-F", kind]
        qemu_img("create", "-q", "-f", "qcow2", *chain, directory / name, "1M")
    (directory / "plain").write_bytes(bytes(1 << 20))
    for name in ("one", "two words"):
        qemu_img("snapshot", "-c", name, directory / "snapshots")
    _set_times(directory / "snapshots")
    _set_feature(directory / "dirty", DIRTY)
    _set_feature(directory / "corrupt", CORRUPT)


def _node(name: str, image: str | None = None, **members: Any) -> Call:
    file = {"driver": "file", "filename": f"{{dir}}/{image or name}"}
    common = {"driver": "qcow2", "node-name": name, "file": file, "read-only": True}
    return "blockdev-add", {**common, **members}


def _data(name: str) -> dict[str, Any]:
    return {"data-file": {"driver": "file", "filename": f"{{dir}}/{name}.raw"}}


SCRIPT: list[Call] = [
    *(_node(name) for name in [*FORMS, *CHAINS] if name != "lost"),
    _node("suppressed", "lost", backing=None),
    _node("other-backing", "relative", backing="v2"),
    _node("same-backing", "absolute", backing="base"),
    _node("no-backing", "absolute", backing=None),
    _node("same-data", "data", **_data("data")),
    _node("other-data", "data", **_data("raw-data")),
    *(
        (
            "blockdev-add",
            {"driver": driver, "node-name": f"{driver}-on", "file": below, "read-only": True},
        )
        for driver, below in (("raw", "dirty"), ("compress", "other-backing"))
    ),
    ("query-named-block-nodes", {}),
    ("query-named-block-nodes", {"flat": True}),
]


def _comparable(value: Any) -> Any:
    """Take out how files are kept, and the order of nodes."""
    if isinstance(value, dict):
        return {name: _comparable(item) for name, item in value.items() if name != "actual-size"}
    if isinstance(value, list):
        return sorted((_comparable(item) for item in value), key=json.dumps)
    return value


def test_descriptions_are_those_of_qemu(tmp_path: Path) -> None:
    if not QEMU_10.available:
        pytest.skip("not installed")
    sides = []
    for program in (VHOSTBLK, QEMU_10):
        directory = tmp_path / program.name
        _prepare(directory)
        answers = asyncio.run(run_calls(program, directory, SCRIPT))
        sides.append(json.loads(json.dumps(answers, sort_keys=True)))
    for call, ours, theirs in zip(SCRIPT, *sides, strict=True):
        assert "return" in ours, (call, ours, theirs)
        assert _comparable(ours) == _comparable(theirs), call

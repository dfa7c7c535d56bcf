# SPDX-License-Identifier: Apache-2.0
"""Images that `blockdev-create` makes are those that QEMU's storage daemon makes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.tools import check, content, qemu_img
from tests.qmp_block.jobs import create, run_calls
from tests.qmp_exports.daemons import QEMU_10, VHOSTBLK

if TYPE_CHECKING:
    from pathlib import Path

    from tests.qmp_block.support import Call

SIZE = (5 << 20) + 512

#: Options of each image. "data" stands for a data file.
IMAGES: list[dict[str, Any]] = [
    {},
    {"size": 0},
    {"size": 1 << 40},
    # Tables longer than what one refcount block counts.
    {"size": 1 << 30, "cluster_size": 512},
    {"size": 1 << 28, "cluster_size": 512, "refcount_bits": 64},
    {"version": "v2"},
    {"lazy_refcounts": True},
    *({"cluster_size": size} for size in (512, 4096, 2 << 20)),
    *({"refcount_bits": bits} for bits in (1, 4, 64)),
    {"compression_type": "zstd"},
    {"extended_l2": True},
    {"backing_file": "base", "backing_fmt": "raw"},
    {"backing_file": "base"},
    {"backing_file": "base", "backing_fmt": "raw", "extended_l2": True, "preallocation": "falloc"},
    *({"preallocation": mode} for mode in ("metadata", "falloc", "full")),
    *({"preallocation": mode, "extended_l2": True} for mode in ("metadata", "full")),
    *({"preallocation": mode, "cluster_size": 512} for mode in ("metadata", "falloc")),
    {"preallocation": "metadata", "version": "v2"},
    {"preallocation": "metadata", "refcount_bits": 64, "cluster_size": 512, "size": 2 << 20},
    {"preallocation": "metadata", "size": 0},
    {"data_file": "data"},
    {"data_file": "data", "data_file_raw": True},
    *({"data_file": "data", "preallocation": mode} for mode in ("metadata", "falloc", "full")),
]


def _calls(number: int, options: dict[str, Any]) -> list[Call]:
    options = {"size": SIZE, **options}
    name = f"{{dir}}/{number}"
    calls = [create("file", filename=f"{name}.qcow2", size=0)]
    if "data_file" in options:
        calls.append(create("file", filename=f"{name}.data", size=0))
        options["data_file"] = {"driver": "file", "filename": f"{name}.data"}
    file = {"driver": "file", "filename": f"{name}.qcow2"}
    return [*calls, create("qcow2", file=file, **options)]


def _seen_by_qemu(path: Path) -> Any:
    info = json.loads(qemu_img("info", "--output=json", path))
    for name in ("actual-size", "children", "dirty-flag"):
        info.pop(name, None)
    runs = json.loads(qemu_img("map", "--output=json", path))
    # Of data, whether the file has a hole there depends on how it was made longer.
    shown = [{**run, "offset": "offset" in run, "zero": run["zero"] or run["data"]} for run in runs]
    # Adjacent runs are split where the tables happen to lie in the file.
    joined: list[dict[str, Any]] = []
    for run in shown:
        last = joined[-1] if joined else {}
        if {**last, "start": 0, "length": 0} == {**run, "start": 0, "length": 0}:
            last["length"] += run["length"]
        else:
            joined.append(run)
    text = json.dumps([info, joined]).replace(str(path.parent), "{dir}")
    return json.loads(text)


def test_images_are_those_of_qemu(tmp_path: Path) -> None:
    if not QEMU_10.available:
        pytest.skip("not installed")
    calls = [call for number, options in enumerate(IMAGES) for call in _calls(number, options)]
    directories = []
    for program in (VHOSTBLK, QEMU_10):
        directory = tmp_path / program.name
        directory.mkdir()
        (directory / "base").write_bytes(b"b" * SIZE)
        directories.append(directory)
        answers = asyncio.run(run_calls(program, directory, calls))
        for answer in answers:
            assert "error" not in json.dumps(answer), (program.name, answer)
    for number, options in enumerate(IMAGES):
        ours, theirs = (directory / f"{number}.qcow2" for directory in directories)
        check(ours)
        assert _seen_by_qemu(ours) == _seen_by_qemu(theirs), options
        if options.get("size", SIZE) <= SIZE:
            raw = content(ours, tmp_path / "raw")
            expected = b"b" if "backing_file" in options else b"\0"
            assert raw == expected * options.get("size", SIZE), options
        if "data_file" in options:
            data = [(directory / f"{number}.data").stat() for directory in directories]
            # Where metadata is preallocated QEMU makes whole clusters of it.
            assert data[0].st_size == options.get("size", SIZE) <= data[1].st_size
        if options.get("preallocation") in ("falloc", "full"):
            # QEMU leaves holes in data files.
            used = [
                sum(each.stat().st_blocks for each in directory.glob(f"{number}.*"))
                for directory in directories
            ]
            assert used[0] >= options.get("size", SIZE) // 512
            assert "data_file" in options or abs(used[0] - used[1]) * 512 <= 1 << 20, options


def test_what_was_in_the_file_before_does_not_show(tmp_path: Path) -> None:
    """Clusters are mapped where the file has old data."""
    path = tmp_path / "disk"
    path.write_bytes(b"x" * (8 << 20))
    file = {"driver": "file", "filename": str(path)}
    calls = [create("qcow2", file=file, size=SIZE, preallocation="metadata")]
    answers = asyncio.run(run_calls(VHOSTBLK, tmp_path, calls))
    assert "error" not in json.dumps(answers)
    check(path)
    assert content(path, tmp_path / "raw") == bytes(SIZE)

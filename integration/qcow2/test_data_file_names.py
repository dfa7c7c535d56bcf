# SPDX-License-Identifier: Apache-2.0
"""The name of a data file, in the header of an image, is a path whatever it looks like."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.tools import qemu_img
from tests.qmp_exports.daemons import QEMU_10, VHOSTBLK, Program, running
from vhostblk.block.drivers.qcow2.header import encode, parse

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20
NAMES = [
    "{dir}/data",
    "data",  # relative to the daemon's directory
    'json:{{"driver":"null-co"}}',
    'json:{{"driver":"file","filename":"{dir}/data"}}',
    "file:{dir}/data",
    "null-co://",
    "nbd:localhost:1",
    "blkdebug::{dir}/data",
    "unknown:{dir}/data",
    "{dir}/with:colon",
]


def _image(directory: Path, name: str) -> Path:
    """Make an image that has this name of a data file."""
    path, data = directory / "disk.qcow2", directory / "data"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data}", path, SIZE)
    (directory / "with:colon").write_bytes(bytes(SIZE))
    raw = path.read_bytes()
    header = parse(raw[: 1 << 16])
    header.data_file = name.encode()
    path.write_bytes(encode(header) + raw[1 << 16 :])
    return path


async def _opened(program: Program, path: Path, log: Path) -> Any:
    """Return an error, or the driver and the file name of the data file."""
    async with running(program, log) as session:
        file = {"driver": "file", "node-name": "file", "filename": str(path)}
        disk = {"driver": "qcow2", "node-name": "disk", "read-only": True, "file": file}
        answer = await session.run("blockdev-add", disk)
        nodes = await session.run("query-named-block-nodes")
        others = [
            (each["drv"], each["file"])
            for each in nodes["return"]
            if each["node-name"] not in ("file", "disk")
        ]
        return answer.get("desc", others)


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_data_file_is_a_path(tmp_path: Path, name: str) -> None:
    name = name.format(dir=tmp_path)
    path = _image(tmp_path, name)
    ours = asyncio.run(_opened(VHOSTBLK, path, tmp_path / "log"))
    if name.startswith("/"):
        assert ours == [("file", name)]
    else:
        assert ours == f"Could not open '{name}': No such file or directory"
    if QEMU_10.available:
        assert asyncio.run(_opened(QEMU_10, path, tmp_path / "log")) == ours


def test_the_name_of_a_device_is_opened_as_one(tmp_path: Path) -> None:
    path = _image(tmp_path, "/dev/null")
    ours = asyncio.run(_opened(VHOSTBLK, path, tmp_path / "log"))
    assert ours == "'host_device' driver: '/dev/null' is a character device: not supported"

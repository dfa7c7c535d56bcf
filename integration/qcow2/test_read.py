# SPDX-License-Identifier: Apache-2.0
"""Images that QEMU wrote are read right, whatever their options."""

from __future__ import annotations

import random
import subprocess
from typing import TYPE_CHECKING

import pytest

from integration.qcow2.tools import (
    agree,
    content,
    opened,
    qemu_img,
    qemu_io,
    read,
    run,
    sectors,
    sectors_by_qemu,
)
from vhostblk.block.graph.permissions import Perm

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 3 << 20

FORMATS = {
    "v2": "compat=0.10",
    "v3": "compat=1.1",
    "512 bytes": "cluster_size=512",
    "4 KiB, 1 bit": "cluster_size=4k,refcount_bits=1",
    "2 MiB, 64 bits": "cluster_size=2M,refcount_bits=64",
    "extended": "extended_l2=on",
    "extended, 16 KiB": "extended_l2=on,cluster_size=16k",
    "extended, 2 MiB": "extended_l2=on,cluster_size=2M",
    "zstd": "compression_type=zstd",
    "lazy": "lazy_refcounts=on",
    "metadata": "preallocation=metadata",
}


def scramble(path: Path, seed: int, version: str) -> None:
    """Write, zero, discard and compress here and there."""
    rng = random.Random(seed)
    commands = []
    for _ in range(40):
        start = rng.randrange(SIZE // 512) * 512
        length = min(rng.choice([512, 4096, 65536, 200 << 10]), SIZE - start)
        kind = rng.choice(["write", "write", "write", "zero", "unmap", "discard"])
        if version == "v2" and kind == "zero":
            kind = "write"
        pattern = rng.randrange(1, 255)
        commands.append(
            {
                "write": f"write -q -P {pattern} {start} {length}",
                "zero": f"write -q -z {start} {length}",
                "unmap": f"write -q -z -u {start} {length}",
                "discard": f"discard -q {start} {length}",
            }[kind]
        )
    qemu_io(path, *commands)


async def _compare(path: Path, expected: bytes) -> None:
    rng = random.Random(7)
    async with opened(path, Perm.CONSISTENT_READ) as (node, backend):
        assert node.size == len(expected)
        assert await read(backend, 0, len(expected)) == expected
        for _ in range(100):
            start = rng.randrange(len(expected))
            length = min(rng.choice([1, 511, 4096, 70000]), len(expected) - start)
            assert await read(backend, start, length) == expected[start : start + length]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("compressed", [False, True])
def test_reads_what_qemu_wrote(tmp_path: Path, name: str, compressed: bool) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", FORMATS[name], path, SIZE)
    scramble(path, 1, name)
    if compressed:
        source, path = path, tmp_path / "compressed.qcow2"
        options = FORMATS[name].replace("preallocation=metadata", "compat=1.1")
        qemu_img("convert", "-c", "-f", "qcow2", "-O", "qcow2", "-o", options, source, path)
        scramble(path, 2, name)
    run(_compare(path, content(path, tmp_path / "raw")))


@pytest.mark.parametrize("name", FORMATS)
def test_block_status_is_that_of_qemu(tmp_path: Path, name: str) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", FORMATS[name], path, SIZE)
    scramble(path, 3, name)

    async def main() -> None:
        async with opened(path, Perm.CONSISTENT_READ) as (node, _):
            assert agree(await sectors(node, SIZE), sectors_by_qemu(path))

    run(main())


@pytest.mark.parametrize("backing_format", ["raw", "qcow2"])
def test_backing_files_are_found_and_read(tmp_path: Path, backing_format: str) -> None:
    base, top = tmp_path / "base", tmp_path / "sub" / "top.qcow2"
    top.parent.mkdir()
    qemu_img("create", "-q", "-f", backing_format, base, 1 << 20)
    subprocess.run(
        ["qemu-io", "-f", backing_format, "-c", "write -q -P 7 0 1M", str(base)], check=True
    )
    qemu_img("create", "-q", "-f", "qcow2", "-b", "../base", "-F", backing_format, top, SIZE)
    qemu_io(top, "write -q -P 9 512k 100k", "write -q -z 0 64k")
    run(_compare(top, content(top, tmp_path / "raw")))

    async def without() -> None:
        async with opened(top, Perm.CONSISTENT_READ, backing=None) as (node, backend):
            assert set(node.children) == {"file"}
            assert await read(backend, 256 << 10, 10) == bytes(10)

    run(without())


@pytest.mark.parametrize("raw", ["on", "off"])
def test_external_data_files_are_found_and_read(tmp_path: Path, raw: str) -> None:
    path = tmp_path / "disk.qcow2"
    data = tmp_path / "data.raw"
    extra = f"data_file={data},data_file_raw={raw}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", extra, path, SIZE)
    scramble(path, 4, "v3")
    run(_compare(path, content(path, tmp_path / "raw")))

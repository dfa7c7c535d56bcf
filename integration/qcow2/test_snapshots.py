# SPDX-License-Identifier: Apache-2.0
"""Internal snapshots that vhostblk makes and deletes; what QEMU makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from integration.qcow2.tools import check, content, opened, qemu_img, read, run, write
from vhostblk.block.drivers.qcow2.node import Qcow2Node

if TYPE_CHECKING:
    from pathlib import Path

SIZE = (5 << 19) + 1536


@pytest.mark.parametrize(
    "form",
    [
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=4k,refcount_bits=2",
        "extended_l2=on",
        "cluster_size=64k,lazy_refcounts=on",
    ],
)
def test_snapshots_keep_what_the_disk_had(tmp_path: Path, form: str) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, SIZE)

    async def main() -> tuple[bytes, bytes]:
        async with opened(path, discard="unmap") as (node, backend):
            assert isinstance(node, Qcow2Node)
            await write(backend, 1000, b"a" * 300_000)
            first = await read(backend, 0, SIZE)
            await node.create_snapshot("first")
            await write(backend, 100_000, b"b" * 5000)
            await write(backend, SIZE - 600, b"c" * 600)
            await node.create_snapshot("second")
            await write(backend, 0, b"d" * 70_000)
            await backend.pwrite_zeroes(65536, 65536)
            names = [each.name for each in node.snapshots()]
            assert names == [b"first", b"second"]
            await node.delete_snapshot(name="second")
            await write(backend, 200_000, b"e" * 10)
            assert (await read(backend, 100_000, 5000))[:4] in (b"bbbb", bytes(4))
            return first, await read(backend, 0, SIZE)

    first, last = run(main())
    check(path)
    assert content(path, tmp_path / "raw") == last
    assert "first" in qemu_img("snapshot", "-l", path)
    assert "second" not in qemu_img("snapshot", "-l", path)
    qemu_img("snapshot", "-a", "first", path)
    assert content(path, tmp_path / "raw") == first
    check(path)
    qemu_img("snapshot", "-d", "first", path)
    check(path)


def test_refcounts_that_are_too_narrow_are_told(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "refcount_bits=1", path, SIZE)

    async def main() -> None:
        async with opened(path) as (node, backend):
            assert isinstance(node, Qcow2Node)
            await write(backend, 0, b"x" * 100_000)
            with pytest.raises(OSError, match="Invalid argument"):
                await node.create_snapshot("s")
            await write(backend, 50_000, b"y" * 100_000)

    run(main())
    check(path)

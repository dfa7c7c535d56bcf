# SPDX-License-Identifier: Apache-2.0
"""Internal snapshots that vhostblk makes and deletes; what QEMU makes of them."""

from __future__ import annotations

import errno
import json
import shutil
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from integration.qcow2.tools import check, content, opened, qemu_img, qemu_io, read, run, write
from tests.block.support import fails_with
from vhostblk.block.drivers.qcow2 import snapshot_changes
from vhostblk.block.drivers.qcow2.layout import Incompatible
from vhostblk.block.drivers.qcow2.node import Qcow2Node
from vhostblk.block.errors import BlockError
from vhostblk.schema.common import PreallocMode

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


@pytest.mark.parametrize(
    "form",
    ["compat=0.10", "cluster_size=512", "cluster_size=4k,refcount_bits=32", "extended_l2=on"],
)
def test_going_back_is_what_qemu_does(tmp_path: Path, form: str) -> None:
    path, other, raw = tmp_path / "disk.qcow2", tmp_path / "other.qcow2", tmp_path / "raw"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, SIZE)
    qemu_io(path, "write -q -c -P 1 0 512k", "write -q -P 2 600k 300k", "write -q -z 700k 64k")
    qemu_img("snapshot", "-c", "first", path)
    grown = SIZE if "0.10" in form else SIZE + (3 << 20)
    if grown > SIZE:
        qemu_img("resize", "-q", path, grown)
    qemu_io(path, "write -q -P 3 400k 300k", f"write -q -P 4 {grown - 4096} 4096")
    shutil.copy(path, other)
    last = content(path, raw)

    async def main() -> bytes:
        async with opened(path, discard="unmap") as (node, backend):
            assert isinstance(node, Qcow2Node)
            assert await read(backend, 0, grown) == last
            await write(backend, 5000, b"not yet written back")
            await node.apply_snapshot(name="first")
            assert node.size == backend.size == SIZE
            return await read(backend, 0, SIZE)

    seen = run(main())
    check(path)
    qemu_img("snapshot", "-a", "first", other)
    assert content(path, raw) == content(other, tmp_path / "raw2") == seen

    async def again() -> bytes:
        async with opened(path, discard="unmap") as (node, backend):
            assert isinstance(node, Qcow2Node)
            with pytest.raises(BlockError, match="Snapshot with id 'null' and name 'second' does"):
                await node.apply_snapshot(name="second")
            await write(backend, 0, b"e" * 1_000_000)
            await node.apply_snapshot(id="1")
            await write(backend, 0, b"f" * 1000)
            await node.delete_snapshot(name="first")
            await write(backend, 650_000, b"g" * 1000)
            return await read(backend, 0, SIZE)

    changed = run(again())
    assert changed[1000:650_000] == seen[1000:650_000]
    check(path)
    assert content(path, raw) == changed


def test_going_back_needs_data_in_the_file_and_no_bitmaps(tmp_path: Path) -> None:
    path, external = tmp_path / "disk.qcow2", tmp_path / "external.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    qemu_img("snapshot", "-c", "s", path)
    qemu_img("bitmap", "--add", "--disable", path, "b")
    form = f"data_file={tmp_path / 'data'}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, external, SIZE)

    async def main() -> None:
        async with opened(path) as (node, _):
            assert isinstance(node, Qcow2Node)
            with pytest.raises(OSError, match="Device has active dirty bitmaps"):
                await node.apply_snapshot(name="s")
        async with opened(external) as (node, _):
            assert isinstance(node, Qcow2Node)
            with fails_with(errno.ENOTSUP):
                await node.create_snapshot("s")

    run(main())


@pytest.mark.parametrize(
    ("size", "code"), [(1000, errno.EINVAL), (1 << 62, errno.EFBIG), (1 << 63, errno.EINVAL)]
)
def test_snapshots_of_impossible_sizes_are_refused(tmp_path: Path, size: int, code: int) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    qemu_io(path, "write -q -P 1 0 64k")
    qemu_img("snapshot", "-c", "s", path)
    data = bytearray(path.read_bytes())
    place = int.from_bytes(data[64:72], "big") + 40 + 8  # the entry's extra data: the disk's size
    data[place : place + 8] = size.to_bytes(8, "big")
    path.write_bytes(data)

    async def main() -> None:
        async with opened(path) as (node, backend):
            assert isinstance(node, Qcow2Node)
            with fails_with(code):
                await node.apply_snapshot(name="s")
            assert await read(backend, 0, 2) == b"\1\1"

    run(main())


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


@pytest.mark.parametrize("name", ["n" * 300, "\u00e4" * 200, "n" * 70_000])
def test_the_start_of_a_long_name_is_the_name(tmp_path: Path, name: str) -> None:
    """A long name is truncated, as in QEMU; lengths in the file have sixteen bits."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)

    async def main() -> None:
        async with opened(path) as (node, backend):
            assert isinstance(node, Qcow2Node)
            await write(backend, 0, b"x" * 100_000)
            made = await node.create_snapshot(name)
            assert made.name == name.encode()[:255]
            await write(backend, 0, b"y" * 100_000)

    run(main())
    check(path)
    snapshots = json.loads(qemu_img("info", "--output=json", path))["snapshots"]
    assert [each["name"] for each in snapshots] == [name.encode()[:255].decode(errors="replace")]


def test_a_snapshot_table_without_room_is_told_before_anything_changes(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)

    async def main() -> None:
        async with opened(path) as (node, backend):
            assert isinstance(node, Qcow2Node)
            await write(backend, 0, b"x" * 100_000)
            await backend.flush()
            before = path.read_bytes()
            with mock.patch.object(snapshot_changes, "MAX_SNAPSHOTS_BYTES", 64):
                with fails_with(errno.EFBIG):
                    await node.create_snapshot("s")
            await backend.flush()
            assert path.read_bytes() == before

    run(main())
    check(path)


@pytest.mark.parametrize("change", ["create", "apply", "grow"])
def test_with_lazy_refcounts_what_changes_no_entries_leaves_the_image_clean(
    tmp_path: Path, change: str
) -> None:
    """QEMU marks an image dirty when it links clusters, but not for these changes."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path, SIZE)
    qemu_io(path, "write -q -P 1 0 128k")
    qemu_img("snapshot", "-c", "s", path)

    async def main() -> None:
        async with opened(path) as (node, _):
            assert isinstance(node, Qcow2Node)
            if change == "create":
                await node.create_snapshot("t")
            elif change == "apply":
                await node.apply_snapshot(name="s")
            else:
                await node.grow(1 << 40, PreallocMode.OFF)
            copy = tmp_path / "copy.qcow2"
            shutil.copyfile(path, copy)
            features = int.from_bytes(copy.read_bytes()[72:80], "big")
            assert not features & Incompatible.DIRTY
            errors = qemu_img("check", copy, check=False)
            assert "corrupt" not in errors
            assert "ERROR" not in errors

    run(main())
    check(path)

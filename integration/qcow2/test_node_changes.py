# SPDX-License-Identifier: Apache-2.0
"""Nodes with direct I/O, and nodes that others take over or that are reopened."""

from __future__ import annotations

import errno
import json
import random
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from integration.qcow2.test_write import SIZE, Model, perform
from integration.qcow2.tools import check, content, opened, qemu_img, qemu_io, read, run, write
from tests.block.support import RW, options
from vhostblk.block.drivers.qcow2.bitmap_store import BitmapStore
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.permissions import Perm

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ["write"] * 6 + ["compressed", "zero", "unmap", "discard", "read", "flush"]


def _direct(path: Path) -> dict[str, Any]:
    return {"driver": "file", "filename": str(path), "cache": {"direct": True}}


@pytest.mark.parametrize("align", [512, 4096])
@pytest.mark.parametrize(
    "form",
    ["cluster_size=512", "cluster_size=1k,refcount_bits=1", "extended_l2=on", "cluster_size=64k"],
)
def test_metadata_of_any_size_is_read_and_written_directly(
    directory: Path, form: str, align: int
) -> None:
    path = directory / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, SIZE)
    rng = random.Random(f"{form}{align}")
    model = Model(bytes(SIZE))
    file = {"driver": "blkdebug", "align": align, "image": _direct(path)}

    async def main() -> bytes:
        async with opened(path, file=file, discard="unmap", cache={"direct": True}) as (_, backend):
            for _ in range(8):
                burst = [
                    (rng.choice(KINDS), rng.randrange(SIZE), rng.choice([9, 4096, 70_000]), byte)
                    for byte in range(1, 7)
                ]
                await perform(backend, model, burst)
            return await read(backend, 0, SIZE)

    seen = run(main())
    assert model.matches(0, seen)
    check(path)
    assert content(path, directory / "raw") == seen


def _members(path: Path, **members: Any) -> dict[str, Any]:
    file = {"driver": "file", "filename": str(path)}
    return {"driver": "qcow2", "node_name": "disk", "file": file, **members}


async def _write_by(graph: Graph, offset: int, data: bytes) -> None:
    backend = BlockBackend("test", RW)
    backend.attach(graph, graph.find("disk"))
    await write(backend, offset, data)
    await backend.detach()


async def _read_by(graph: Graph, offset: int, length: int) -> bytes:
    backend = BlockBackend("test", Perm.CONSISTENT_READ)
    backend.attach(graph, graph.find("disk"))
    data = await read(backend, offset, length)
    await backend.detach()
    return data


@pytest.mark.parametrize("form", ["compat=1.1", "lazy_refcounts=on"])
def test_a_reopened_image_is_in_order(tmp_path: Path, form: str) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, SIZE)

    async def main() -> None:
        graph = Graph()
        await graph.add(options(**_members(path, read_only=True)))
        await graph.reopen([options(**_members(path))])
        await _write_by(graph, 1000, b"a" * 100_000)
        changed = {"lazy_refcounts": True, "l2_cache_size": 1024, "l2_cache_entry_size": 512}
        await graph.reopen([options(**_members(path, overlap_check="all", **changed))])
        await _write_by(graph, 1 << 20, b"b" * 100_000)
        await graph.reopen([options(**_members(path, read_only=True))])
        check(path)
        assert await _read_by(graph, (1 << 20) - 1, 3) == b"\0bb"
        await graph.reopen([options(**_members(path))])
        await _write_by(graph, 0, b"c" * 1000)
        await graph.close()

    run(main())
    check(path)
    assert content(path, tmp_path / "raw")[998:1002] == b"ccaa"


def test_an_image_that_others_had_meanwhile_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)

    async def main() -> None:
        graph = Graph()
        await graph.add(options(**_members(path)))
        await _write_by(graph, 0, b"a" * 100_000)
        await graph.set_active("disk", active=False)
        check(path)
        qemu_io(path, "write -q -P 98 50k 1M")
        qemu_img("snapshot", "-c", "s", path)
        await graph.set_active("disk", active=True)
        assert await _read_by(graph, 51_199, 2) == b"ab"
        await _write_by(graph, 60_000, b"c" * 10)
        await graph.close()

    run(main())
    check(path)
    assert content(path, tmp_path / "raw")[59_999:60_002] == b"bcc"
    qemu_img("snapshot", "-a", "s", path)
    assert content(path, tmp_path / "raw")[59_999:60_002] == b"bbb"


@pytest.mark.parametrize("change", ["set-active", "reopen"])
def test_users_learn_of_the_size_that_others_gave_an_image(tmp_path: Path, change: str) -> None:
    """The file is as long as before, so that nobody learns of it from there."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    told: list[int] = []

    async def main() -> None:
        graph = Graph()
        first = {"read_only": True} if change == "reopen" else {}
        node = await graph.add(options(**_members(path, **first)))
        user = BlockBackend("user", Perm.CONSISTENT_READ)
        user.attach(graph, node)
        user.on_resize(lambda: told.append(user.size))
        if change == "set-active":
            await graph.set_active("disk", active=False)
        qemu_img("resize", "-q", "--image-opts", _shared(path), 2 * SIZE + 1024)
        if change == "set-active":
            await graph.set_active("disk", active=True)
        else:
            await graph.reopen([options(**_members(path))])
        assert await read(user, 2 * SIZE + 1023, 1) == b"\0"
        await user.detach()
        await graph.close()

    run(main())
    assert told == [2 * SIZE + 1024]


def test_an_image_that_is_not_handed_over_after_all_goes_on_recording(tmp_path: Path) -> None:
    """Another one can't be, so none is: bitmaps in the file are out of date again."""
    paths = [tmp_path / name for name in ("disk", "other")]

    async def main() -> None:
        graph = Graph()
        for path in paths:
            qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
            qemu_img("bitmap", "--add", path, "b")
            await graph.add(options(**{**_members(path), "node_name": path.name}))

        async def fail() -> None:
            raise OSError(errno.EIO, "Input/output error")

        other = graph.find("other")
        with mock.patch.object(other, "give_up_writing", fail):
            with pytest.raises(BlockError, match=r"^Failed to inactivate all nodes: Input/output"):
                await graph.set_active(None, active=False)
        await _write_by(graph, 0, b"a")
        (bitmap,) = graph.find("disk").bitmaps
        assert bitmap.is_dirty(0)
        info = json.loads(qemu_img("info", "-U", "--output=json", paths[0]))
        (stored,) = info["format-specific"]["data"]["bitmaps"]
        assert "in-use" in stored["flags"]
        await graph.close()

    run(main())
    for path in paths:
        check(path)


def test_an_image_loses_its_backing_file(tmp_path: Path) -> None:
    """Its published entries change, too."""
    base, path = tmp_path / "base", tmp_path / "disk"
    base.write_bytes(b"b" * SIZE)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path)
    qemu_io(path, "write -q -P 1 64k 64k")
    file = {"driver": "file", "filename": str(base)}
    below = {"driver": "raw", "node_name": "below", "file": file}

    async def main() -> None:
        graph = Graph()
        await graph.add(options(**below))
        await graph.add(options(**_members(path), backing="below"))
        with_base = await _read_by(graph, 0, 192 << 10)
        assert with_base == b"b" * 65536 + b"\1" * 65536 + b"b" * 65536
        await graph.reopen([options(**_members(path), backing=None)])
        assert await _read_by(graph, 0, 192 << 10) == bytes(65536) + b"\1" * 65536 + bytes(65536)
        await graph.close()

    run(main())


def test_an_image_whose_bitmaps_cannot_be_stored_is_not_handed_over(tmp_path: Path) -> None:
    path = tmp_path / "disk"

    async def main() -> None:
        graph = Graph()
        qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
        qemu_img("bitmap", "--add", path, "b")
        await graph.add(options(**_members(path)))
        await _write_by(graph, 0, b"a")
        node = graph.find("disk")

        async def fail(_store: BitmapStore, _bitmaps: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with mock.patch.object(BitmapStore, "store", fail):
            with pytest.raises(BlockError) as caught:
                await graph.set_active("disk", active=False)
        assert str(caught.value) == (
            "Failed to inactivate node: Lost persistent bitmaps during inactivation of node "
            "'disk': No space left on device"
        )
        assert node.active
        await _write_by(graph, 1 << 20, b"b")
        (bitmap,) = node.bitmaps
        assert bitmap.is_dirty(0)
        assert bitmap.is_dirty(1 << 20)
        await graph.close()

    run(main())
    check(path)


def _shared(path: Path) -> str:
    """Name an image that others have locked."""
    return f"driver=qcow2,file.driver=file,file.locking=off,file.filename={path}"

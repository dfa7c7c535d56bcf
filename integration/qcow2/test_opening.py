# SPDX-License-Identifier: Apache-2.0
"""Images opened before numpy is there: what is put off makes no difference, and costs nothing."""

from __future__ import annotations

import errno
import hashlib
import os
from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.tools import check, content, opened, qemu_img, qemu_io, read, run, write
from tests.block.support import options
from vhostblk.block.drivers.qcow2 import opening
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.permissions import Perm

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 4 << 20


@pytest.fixture(autouse=True)
def _early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_numpy_is_loaded", lambda: False)


def make(path: Path, *words: str) -> Path:
    qemu_img("create", "-q", "-f", "qcow2", *words, path, SIZE)
    qemu_io(path, "write -P 1 0 1M", "write -P 2 2M 64k")
    return path


def is_loaded(node: Any) -> bool:
    return bool(node._is_loaded)


def test_an_image_that_nobody_uses_is_never_loaded(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2")
    before = hashlib.sha256(path.read_bytes()).digest()

    async def main() -> None:
        async with opened(path) as (node, backend):
            await backend.flush()
            assert (node.size, node.cluster_size) == (SIZE, 64 << 10)
            assert not is_loaded(node)

    run(main())
    assert hashlib.sha256(path.read_bytes()).digest() == before


@pytest.mark.parametrize("form", [(), ("-o", "cluster_size=512"), ("-o", "extended_l2=on")])
def test_the_first_request_loads_the_image(tmp_path: Path, form: tuple[str, ...]) -> None:
    path = make(tmp_path / "disk.qcow2", *form)

    async def main() -> bytes:
        async with opened(path) as (node, backend):
            await write(backend, 3 << 20, b"\3" * 5000)
            assert is_loaded(node)
            return await read(backend, 0, SIZE)

    seen = run(main())
    expected = bytearray(SIZE)
    for place, length, byte in ((0, 1 << 20, 1), (2 << 20, 64 << 10, 2), (3 << 20, 5000, 3)):
        expected[place : place + length] = bytes([byte]) * length
    assert seen == expected
    check(path)
    assert content(path, tmp_path / "raw") == seen


@pytest.mark.parametrize("what", ["snapshot", "bitmap", "dirty"])
def test_an_image_with_more_to_do_is_loaded_at_once(tmp_path: Path, what: str) -> None:
    path = make(tmp_path / "disk.qcow2", "-o", "lazy_refcounts=on")
    if what == "snapshot":
        qemu_img("snapshot", "-c", "s", path)
    elif what == "bitmap":
        qemu_img("bitmap", "--add", path, "b")
    else:
        with path.open("r+b") as file:
            file.seek(79)
            file.write(b"\1")

    async def main() -> None:
        async with opened(path) as (node, _):
            assert is_loaded(node)

    run(main())
    check(path)


def test_a_chain_is_opened_and_reopened_before_it_is_used(tmp_path: Path) -> None:
    base = make(tmp_path / "base.qcow2")
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path)

    async def main() -> None:
        graph = Graph()
        file = {"driver": "file", "filename": str(path)}
        node = await graph.add(options(driver="qcow2", node_name="disk", file=file))
        async with graph.changing():
            await graph.make_read_only(node)
            assert not is_loaded(node)
            assert not is_loaded(node.children["backing"].node)
            await graph.make_read_only(node, read_only=False)
        await graph.close()
        async with opened(path) as (_, backend):
            assert await read(backend, 0, 4096) == b"\1" * 4096
            await write(backend, 100, b"\7" * 100)

    run(main())
    check(path)
    assert content(path, tmp_path / "raw")[100:200] == b"\7" * 100


def test_tables_that_cant_be_read_are_told_when_the_image_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "disk.qcow2")
    pread = os.pread

    def broken(fd: int, length: int, offset: int) -> bytes:
        if offset:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", broken)

    async def main() -> None:
        async with opened(path, Perm.CONSISTENT_READ):
            pass

    with pytest.raises(BlockError, match=r"^Could not read qcow2 metadata: Input/output error$"):
        run(main())

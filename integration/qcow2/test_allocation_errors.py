# SPDX-License-Identifier: Apache-2.0
"""Allocations and releases that fail half-way: no clusters are leaked."""

from __future__ import annotations

import errno
import os
import random
import re
from typing import TYPE_CHECKING

import pytest

from integration.qcow2.record import RecordingNode, never, opened_on
from integration.qcow2.test_write import Model
from integration.qcow2.test_write_errors import burst
from integration.qcow2.tools import check, content, qemu_img, qemu_img_status, read, run, write
from vhostblk.block.drivers.qcow2 import allocator
from vhostblk.block.io.flags import WriteFlags
from vhostblk.schema.common import PreallocMode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from vhostblk.block.drivers.qcow2.node import Qcow2Node
    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.block.io.iovec import IoVec

MIB = 1 << 20
SIZE = 16 * MIB


def make(tmp_path: Path, form: str) -> Path:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, SIZE)
    return path


async def leave_free_clusters(backend: BlockBackend) -> None:
    """Make free clusters in the file that are not zeroes."""
    await write(backend, 0, b"f" * MIB)
    await backend.pwrite_zeroes(0, MIB, WriteFlags.MAY_UNMAP)
    await backend.flush()


def zeroes_fail(_offset: int, data: bytes) -> int:
    return 0 if any(data) else errno.ENOSPC


async def _write_far(_node: Qcow2Node, backend: BlockBackend) -> None:
    await write(backend, 8 * MIB, b"w" * 4096)


async def _preallocate(node: Qcow2Node, _backend: BlockBackend) -> None:
    await node.grow(SIZE + MIB, PreallocMode.METADATA)


@pytest.mark.parametrize("use", [_write_far, _preallocate], ids=["new table", "preallocation"])
def test_clusters_that_cannot_be_zeroed_are_free_again(
    tmp_path: Path, use: Callable[[Qcow2Node, BlockBackend], Awaitable[None]]
) -> None:
    path = make(tmp_path, "cluster_size=4k")
    file = RecordingNode(path.read_bytes())

    async def main() -> None:
        async with opened_on(file, discard="unmap") as (node, backend):
            await leave_free_clusters(backend)
            file.fails = zeroes_fail
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                await use(node, backend)
            file.fails = never
            assert not any(await read(backend, 0, SIZE))

    run(main())
    path.write_bytes(file.data)
    check(path)


def test_a_refcount_table_that_cannot_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With clusters of this size, it moves when the file gets longer than 2 MiB."""
    monkeypatch.setattr(allocator, "GROWTH", MIB)  # this is fast
    path, model = make(tmp_path, "cluster_size=512,refcount_bits=64"), Model(bytes(SIZE))
    file, rng = RecordingNode(path.read_bytes()), random.Random("table")
    pieces = [(at, rng.randbytes(65536)) for at in range(0, 5 * MIB // 2, 65536)]

    async def main() -> None:
        async with opened_on(file) as (node, backend):
            image = node._image
            before = image.header.reftable_offset
            file.fails = lambda _, data: errno.ENOSPC if _is_table(node, data) else 0
            failed, ends = [], []
            for first in range(0, len(pieces), 2):
                some = pieces[first : first + 2]
                errors = await burst(backend, model, some)
                failed += [each for each, error in zip(some, errors, strict=True) if error]
                if all(errors):
                    ends.append(image.allocator.high_water)
            assert len(ends) > 1
            assert len(set(ends)) == 1  # failing again takes no more of the file
            await backend.flush()
            file.fails = never
            assert not any(await burst(backend, model, failed))
            await backend.flush()
            assert image.header.reftable_offset != before
            assert model.matches(0, await read(backend, 0, SIZE))

    run(main())
    assert (model.data != -1).all()
    path.write_bytes(file.data)
    check(path)
    assert model.matches(0, content(path, tmp_path / "raw"))


def _is_table(node: Qcow2Node, data: bytes) -> bool:
    """Return whether this is a refcount table that is longer than the present one."""
    table = node._image.refcounts.table
    return len(data) > 8 * len(table) and data.startswith(table.astype(">u8").tobytes())


class _UnreadablePlaces(RecordingNode):
    """A file with places that can't be read."""

    unreadable = range(0)

    async def preadv(self, offset: int, iov: IoVec) -> None:
        if offset in self.unreadable:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        await super().preadv(offset, iov)


def test_clusters_whose_refcounts_cannot_be_read_are_all_that_is_not_freed(tmp_path: Path) -> None:
    path = make(tmp_path, "cluster_size=512")
    file = _UnreadablePlaces(path.read_bytes())

    async def main() -> None:
        async with opened_on(file, discard="unmap") as (node, backend):
            await write(backend, 0, b"w" * (2 * MIB))
            await backend.flush()
            image = node._image
            place = image.refcounts.block_offset(5)
            assert place
            image.refcounts.blocks.clear()  # all are in the file
            file.unreadable = range(place, place + 1)
            await backend.pwrite_zeroes(0, 2 * MIB, WriteFlags.MAY_UNMAP)
            await backend.flush()
            file.unreadable = range(0)
            assert not any(await read(backend, 0, SIZE))

    run(main())
    path.write_bytes(file.data)
    status, text = qemu_img_status("check", "-f", "qcow2", path)
    assert status == 3  # nothing but leaks
    leaks = re.search(r"(\d+) leaked clusters", text)
    assert leaks is not None
    assert 0 < int(leaks[1]) <= 256  # as many as a block has counts

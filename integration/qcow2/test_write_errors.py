# SPDX-License-Identifier: Apache-2.0
"""Writes to the file that fail: whose they are hears of it, and the image stays whole."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from integration.qcow2.record import RecordingNode, crash, never, opened_on
from integration.qcow2.test_crash import verify
from integration.qcow2.test_write import Model
from integration.qcow2.tools import check, content, qemu_img, read, run, write
from vhostblk.block.drivers.qcow2 import layout
from vhostblk.block.graph.node import BlockStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vhostblk.block.drivers.qcow2.node import Qcow2Node
    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.block.io.iovec import IoVec

SIZE = 16 << 20
CLUSTER = 64 << 10
BAD = b"bad!" * 128

#: Where, and what.
Write = tuple[int, bytes]


async def burst(
    backend: BlockBackend, model: Model, writes: Sequence[Write]
) -> list[BaseException | None]:
    """Write side by side; the model gets what succeeded, and what failed is unknown."""
    errors = await asyncio.gather(
        *(write(backend, offset, data) for offset, data in writes), return_exceptions=True
    )
    for (offset, data), error in zip(writes, errors, strict=True):
        model.data[offset : offset + len(data)] = -1 if error else np.frombuffer(data, np.uint8)
    return errors


def scattered(rng: random.Random) -> list[Write]:
    """Return writes to clusters far from each other, one to parts of three, one to a whole one."""
    clusters = rng.sample(range(8, 120, 8), 12)
    writes = [(at * CLUSTER + 4096, rng.randbytes(4096)) for at in clusters]
    last = writes.pop()[0]
    writes += [(last, rng.randbytes(2 * CLUSTER)), (124 * CLUSTER, rng.randbytes(CLUSTER))]
    return writes


def stream(rng: random.Random) -> list[Write]:
    """Return writes one behind the other, long enough to be given clusters in advance."""
    return [(at, rng.randbytes(CLUSTER)) for at in range(0, 5 << 20, CLUSTER)]


async def is_allocated(node: Qcow2Node, offset: int) -> bool:
    return bool((await node.block_status(offset, 1)).status & BlockStatus.ALLOCATED)


def make(tmp_path: Path, backed: bool, options: str = "") -> tuple[Path, Model]:
    """Make an image, perhaps over a file with data; return what it reads as."""
    path, data = tmp_path / "disk.qcow2", bytes(SIZE)
    words = ["-f", "qcow2", *(["-o", options] if options else [])]
    if backed:
        data = random.Random("base").randbytes(SIZE)
        (tmp_path / "base").write_bytes(data)
        words += ["-b", str(tmp_path / "base"), "-F", "raw"]
    qemu_img("create", "-q", *words, path, SIZE)
    return path, Model(data)


@pytest.mark.parametrize(
    ("code", "fresh"), [(errno.EIO, True), (errno.ENOSPC, True), (errno.EIO, False)]
)
@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("writes", [scattered, stream], ids=["scattered", "stream"])
def test_data_that_cannot_be_written(
    tmp_path: Path,
    code: int,
    fresh: bool,
    backed: bool,
    writes: Callable[[random.Random], list[Write]],
) -> None:
    """`fresh`: new clusters are where the file has never been used."""
    path, model = make(tmp_path, backed)
    rng = random.Random(f"{code} {backed} {fresh}")
    wanted = writes(rng)
    for index in (3, len(wanted) - 2):
        offset, data = wanted[index]
        wanted[index] = offset, data[: len(data) // 2] + BAD + data[len(data) // 2 + len(BAD) :]
    file = RecordingNode(path.read_bytes())
    below = RecordingNode((tmp_path / "base").read_bytes(), "base") if backed else None

    async def main() -> None:
        async with opened_on(file, below) as (node, backend):
            if fresh:  # looks for free clusters
                assert not any(await burst(backend, model, [(SIZE - 4096, b"f" * 4096)]))
            file.fails = lambda _, data: code if BAD in data else 0
            before = model.data.copy()
            errors = await burst(backend, model, wanted)
            for error, (offset, data) in zip(errors, wanted, strict=True):
                if BAD in data:
                    assert isinstance(error, OSError)
                    assert error.errno == code
                    if len(data) <= CLUSTER:
                        assert not await is_allocated(node, offset)
                else:
                    assert error is None, offset
            # What failed wholly is as before: nothing refers to clusters that were not written.
            lost = [each for each, error in zip(wanted, errors, strict=True) if error]
            for offset, data in lost:
                if not await is_allocated(node, offset):
                    stop = min(offset + len(data), (offset // CLUSTER + 1) * CLUSTER)
                    model.data[offset:stop] = before[offset:stop]
            assert model.matches(0, await read(backend, 0, SIZE))
            await backend.flush()
            file.fails = never
            assert not any(await burst(backend, model, lost))
            assert model.matches(0, await read(backend, 0, SIZE))

    run(main())
    assert (model.data != -1).all()
    path.write_bytes(file.data)
    check(path)
    assert model.matches(0, content(path, tmp_path / "raw"))


class Unreadable(RecordingNode):
    """A file whose reads fail, once they are to."""

    broken = False

    async def preadv(self, offset: int, iov: IoVec) -> None:
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        await super().preadv(offset, iov)


@pytest.mark.parametrize("fresh", [False, True])
def test_data_beneath_that_cannot_be_read(tmp_path: Path, fresh: bool) -> None:
    path, model = make(tmp_path, backed=True)
    file = RecordingNode(path.read_bytes())
    below = Unreadable((tmp_path / "base").read_bytes(), "base")
    part, whole = (CLUSTER + 4096, b"p" * 4096), (2 * CLUSTER, b"w" * CLUSTER)

    async def main() -> None:
        async with opened_on(file, below) as (node, backend):
            if fresh:  # looks for free clusters
                assert not any(await burst(backend, model, [(SIZE - 4096, b"f" * 4096)]))
            below.broken = True
            before = model.data.copy()
            errors = await burst(backend, model, [part, whole])
            below.broken = False
            assert [getattr(each, "errno", 0) for each in errors] == [errno.EIO, 0]
            assert not await is_allocated(node, part[0])
            model.data[CLUSTER : 2 * CLUSTER] = before[CLUSTER : 2 * CLUSTER]
            assert model.matches(0, await read(backend, 0, SIZE))

    run(main())
    path.write_bytes(file.data)
    check(path)
    assert model.matches(0, content(path, tmp_path / "raw"))


@pytest.mark.parametrize("backed", [False, True])
def test_a_short_write_inside_a_long_one(tmp_path: Path, backed: bool) -> None:
    """Either may be the last one; what only the long one writes is not filled up."""
    path, model = make(tmp_path, backed)
    file = RecordingNode(path.read_bytes())
    below = RecordingNode((tmp_path / "base").read_bytes(), "base") if backed else None

    async def main() -> None:
        async with opened_on(file, below) as (_, backend):
            await asyncio.gather(
                write(backend, 512, b"l" * 16384),
                write(backend, 1024, b"s" * 512),
                write(backend, 4096, b"s" * 512),
            )
            for low, high in ((512, 1024), (1536, 4096), (4608, 16896)):
                model.data[low:high] = ord("l")
            model.data[1024:1536] = model.data[4096:4608] = -1
            assert model.matches(0, await read(backend, 0, SIZE))

    run(main())
    path.write_bytes(file.data)
    check(path)
    assert model.matches(0, content(path, tmp_path / "raw"))


def test_writes_that_overlap_do_not_fill_a_cluster(tmp_path: Path) -> None:
    """Together they have as many bytes as the cluster; the rest is still what lies beneath."""
    path, model = make(tmp_path, backed=True)
    file = RecordingNode(path.read_bytes())
    below = RecordingNode((tmp_path / "base").read_bytes(), "base")
    half = CLUSTER // 2

    async def main() -> None:
        async with opened_on(file, below) as (_, backend):
            # Looks for free clusters; those that follow are where the file has never been used.
            assert not any(await burst(backend, model, [(SIZE - 4096, b"f" * 4096)]))
            writes = [(0, b"w" * half), (half // 2, b"w" * half)]
            assert not any(await burst(backend, model, writes))
            assert model.matches(0, await read(backend, 0, SIZE))

    run(main())
    path.write_bytes(file.data)
    check(path)
    assert model.matches(0, content(path, tmp_path / "raw"))


KINDS = ["L1 table", "L2 tables", "refcount blocks", "refcount table"]


def metadata(node: Qcow2Node, kind: str) -> list[tuple[int, int]]:
    """Return where in the file a kind of metadata is: start, stop."""
    image = node._image
    size = image.geometry.cluster_size
    header = image.header
    if kind == "L2 tables":
        tables = [int(at) & layout.OFFSET_MASK for at in image.tables.l1 if at]
        return [(at, at + size) for at in tables]
    if kind == "refcount blocks":
        return [(int(at), int(at) + size) for at in image.refcounts.table if at]
    if kind == "refcount table":
        start = header.reftable_offset
        return [(start, start + header.reftable_clusters * size)]
    return [(header.l1_offset, header.l1_offset + 8 * header.l1_size)]


@pytest.mark.parametrize(
    ("kind", "code"), [*((kind, errno.EIO) for kind in KINDS), ("any", errno.ENOSPC)]
)
def test_metadata_that_cannot_be_written(tmp_path: Path, kind: str, code: int) -> None:
    """What was flushed is there after a crash, what was written once it can be, after a flush."""
    path, model = make(tmp_path, backed=False, options="cluster_size=512")
    rng = random.Random(f"{kind} {code}")
    before = path.read_bytes()
    file = RecordingNode(before)
    kinds = KINDS if kind == "any" else [kind]

    async def main() -> None:
        async with opened_on(file) as (node, backend):
            pieces = [(at, rng.randbytes(1024)) for at in rng.sample(range(0, SIZE, 4096), 100)]
            assert not any(await burst(backend, model, pieces))
            await backend.flush()
            flushed = Model(b"")
            flushed.data = model.data.copy()

            def fails(offset: int, data: bytes) -> int:
                stop = offset + len(data)
                hit = any(
                    offset < high and low < stop
                    for each in kinds
                    for low, high in metadata(node, each)
                )
                return code if hit else 0

            file.fails = fails
            for _ in range(3):
                places = rng.sample(range(2048, SIZE, 4096), 150)
                pieces = [(at, rng.randbytes(1024)) for at in places]
                await burst(backend, model, pieces)
                flushed.data[model.data != flushed.data] = -1
                with pytest.raises(OSError, match=os.strerror(code)):
                    await backend.flush()
                assert model.matches(0, await read(backend, 0, SIZE))
            copy = tmp_path / "crashed.qcow2"
            for _ in range(3):
                copy.write_bytes(crash(before, file.log, rng))
                verify(copy, tmp_path, flushed.data, repair=False)
            file.fails = never
            await backend.flush()
            assert model.matches(0, await read(backend, 0, SIZE))

    run(main())
    path.write_bytes(file.data)
    check(path)
    assert model.matches(0, content(path, tmp_path / "raw"))

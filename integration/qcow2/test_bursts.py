# SPDX-License-Identifier: Apache-2.0
"""Bursts of writes that allocate: over backing files, in streams, and where something fails."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.tools import check, content, opened, qemu_img, qemu_io, read, run, write
from vhostblk.block.drivers.qcow2.ahead import MIN_STREAM
from vhostblk.block.io.completion import gather
from vhostblk.block.io.iovec import IoVec

if TYPE_CHECKING:
    from pathlib import Path

    from vhostblk.block.graph.backend import BlockBackend

CLUSTER = 64 << 10
SIZE = 16 << 20


async def burst(
    backend: BlockBackend, model: bytearray, pieces: list[tuple[int, bytes]]
) -> list[BaseException | None]:
    """Write pieces, as one if that can be; `model` gets what succeeded.

    Return what each failed with.
    """
    iovs = [IoVec.from_buffers([bytearray(data)]) for _, data in pieces]
    together = backend.pwritev_burst([offset for offset, _ in pieces], iovs)
    if together is None:
        work = (backend.pwritev(piece[0], iov) for piece, iov in zip(pieces, iovs, strict=True))
        errors = await gather(work)
    else:
        errors = await together or [None] * len(pieces)
    for (offset, data), error in zip(pieces, errors, strict=True):
        if error is None:
            model[offset : offset + len(data)] = data
    return errors


def make_backed(tmp_path: Path, form: str = "compat=1.1") -> tuple[Path, bytearray]:
    """Make an image over a file whose first half has data; return what it reads as."""
    data = random.Random("base").randbytes(SIZE // 2)
    base = tmp_path / "base"
    base.write_bytes(data)
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, "-b", base, "-F", "raw", path, SIZE)
    return path, bytearray(data.ljust(SIZE, b"\0"))


def test_bursts_over_a_backing_file(tmp_path: Path) -> None:
    path, model = make_backed(tmp_path)
    rng = random.Random("bursts")

    async def main() -> None:
        async with opened(path) as (_, backend):
            for _ in range(6):
                places = rng.sample(range(0, SIZE, 4096), 24)
                pieces = [(place, rng.randbytes(4096)) for place in places]
                at = rng.randrange(SIZE // CLUSTER - 4) * CLUSTER
                taken = range(at, at + 4 * CLUSTER, 4096)
                pieces = [piece for piece in pieces if piece[0] not in taken]
                pieces.append((at + 8192, rng.randbytes(3 * CLUSTER)))  # parts of four clusters
                pieces.append((at, rng.randbytes(4096)))  # and more of the first
                assert not any(await burst(backend, model, pieces))
                assert await read(backend, 0, SIZE) == model

    run(main())
    check(path)
    assert content(path, tmp_path / "raw") == model


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("length", [4096, CLUSTER, 3 * CLUSTER // 2])
def test_streams_get_clusters_in_advance(tmp_path: Path, backed: bool, length: int) -> None:
    path, model = make_backed(tmp_path)
    if not backed:
        qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
        model = bytearray(SIZE)
    begin = SIZE // 2
    written = 6 << 20

    async def main() -> None:
        async with opened(path) as (node, backend):
            assert not any(await burst(backend, model, [(0, b"first")]))  # looks for free clusters
            for start in range(begin, begin + written, 16 * length):
                stop = min(start + 16 * length, begin + written)
                pieces = [
                    (at, bytes([at // 4096 % 255 + 1]) * min(length, stop - at))
                    for at in range(start, stop, length)
                ]
                assert not any(await burst(backend, model, pieces))
            extent = await node.block_status(begin + written, 1)
            assert extent.offset  # there already
            after = begin + written + written // 4 + CLUSTER
            extent = await node.block_status(after, 1)
            assert not extent.offset
            assert await read(backend, 0, SIZE) == model

    run(main())
    check(path)
    assert content(path, tmp_path / "raw") == model


def test_a_stream_into_an_image_without_its_backing_file_hides_nothing_of_that(
    tmp_path: Path,
) -> None:
    """Whoever fills an overlay on its own writes what differs; the rest is still that below."""
    path, model = make_backed(tmp_path)

    async def main() -> None:
        async with opened(path, backing=None) as (_, backend):
            assert not any(await burst(backend, model, [(SIZE // 2, b"f" * CLUSTER)]))
            for start in range(0, MIN_STREAM, 1 << 20):
                pieces = [(at, b"n" * CLUSTER) for at in range(start, start + (1 << 20), CLUSTER)]
                assert not any(await burst(backend, model, pieces))

    run(main())
    check(path)
    assert content(path, tmp_path / "raw") == model


@pytest.mark.parametrize("form", ["extended_l2=off", "extended_l2=on"])
@pytest.mark.parametrize("gap", [512, 4096])
def test_writes_to_one_cluster_hide_nothing_between_them(
    tmp_path: Path, gap: int, form: str
) -> None:
    path, model = make_backed(tmp_path, form)

    async def main() -> None:
        async with opened(path) as (_, backend):
            await write(backend, SIZE // 2 - CLUSTER, b"t")  # the table is there
            model[SIZE // 2 - CLUSTER] = ord("t")
            for number in range(4):
                start, middle = number * CLUSTER, 8192
                rest = CLUSTER - middle - gap
                pieces = [(start, b"n" * middle), (start + middle + gap, b"m" * rest)]
                assert not any(await burst(backend, model, pieces))
            assert await read(backend, 0, SIZE) == model

    run(main())
    check(path)


@pytest.mark.parametrize("distance", [0, 1, 15])
def test_a_stream_over_a_backing_file_hides_nothing_of_that(tmp_path: Path, distance: int) -> None:
    """A fourth of the stream would be given in advance, where the backing file has data."""
    end = MIN_STREAM + (1 << 20)  # the first burst's clusters are not at the file's end
    data_at = end + distance * CLUSTER
    base, path = tmp_path / "base.qcow2", tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, SIZE)
    # The table of all of it is there, and is read first.
    qemu_io(base, f"write -q -P 1 {data_at} {CLUSTER}")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path, SIZE)
    model = bytearray(SIZE)
    model[data_at : data_at + CLUSTER] = b"\1" * CLUSTER

    async def main() -> None:
        async with opened(path) as (_, backend):
            assert await read(backend, 0, SIZE) == model
            for start in range(0, end, 1 << 20):
                pieces = [(at, b"n" * CLUSTER) for at in range(start, start + (1 << 20), CLUSTER)]
                assert not any(await burst(backend, model, pieces))
            assert await read(backend, 0, SIZE) == model

    run(main())
    check(path)
    assert content(path, tmp_path / "raw") == model


def test_writes_of_nothing_change_nothing(tmp_path: Path) -> None:
    """They may be right behind the end."""
    path, model = tmp_path / "disk.qcow2", bytearray(SIZE)
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    nothing = IoVec.from_buffers([bytearray()])

    async def main() -> None:
        async with opened(path) as (_, backend):
            for offset in (0, 512, SIZE // 2, SIZE):
                await backend.pwritev(offset, nothing)
                together = backend.pwritev_burst([offset, offset], [nothing, nothing])
                assert together is None or not any(await together)
            assert await read(backend, 0, SIZE) == model

    before = path.read_bytes()
    run(main())
    assert path.read_bytes() == before


def test_a_mistake_of_ours_leaves_nobody_waiting(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)

    async def main() -> None:
        raised: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: raised.append(context["exception"]))
        async with opened(path) as (node, backend):
            image = node._image  # type: ignore[attr-defined]
            behind: asyncio.Future[asyncio.Task[None]] = loop.create_future()

            async def mistake() -> None:
                del image.relieve
                behind.set_result(asyncio.create_task(write(backend, CLUSTER, b"b" * 512)))
                for _ in range(3):
                    await asyncio.sleep(0)
                raise ZeroDivisionError

            image.relieve = mistake
            await write(backend, 0, b"a" * 512)
            await (await behind)
            assert await read(backend, CLUSTER, 512) == b"b" * 512
        assert [type(each) for each in raised] == [ZeroDivisionError]

    run(main())
    check(path)


def _failing(path: Path, event: str, sector: int) -> dict[str, Any]:
    error = {"event": event, "errno": 5, "once": True}
    image = {"driver": "file", "filename": str(path)}
    return {"driver": "blkdebug", "image": image, "inject-error": [{**error, "sector": sector}]}


def test_a_cluster_that_cannot_be_copied_costs_its_own_writes_only(tmp_path: Path) -> None:
    path, model = make_backed(tmp_path)
    backing = {"driver": "raw", "file": _failing(tmp_path / "base", "read_aio", 7 * CLUSTER // 512)}

    async def main() -> None:
        async with opened(path, backing=backing) as (_, backend):
            assert not any(await burst(backend, model, [(0, b"a" * 4096)]))
            places = [2 * CLUSTER, 7 * CLUSTER, 7 * CLUSTER + 8192, 9 * CLUSTER]
            errors = await burst(backend, model, [(place, b"b" * 4096) for place in places])
            assert [error is None for error in errors] == [True, False, False, True]
            assert await read(backend, 0, SIZE) == model
            assert not any(await burst(backend, model, [(7 * CLUSTER, b"c" * 4096)]))

    run(main())
    check(path)
    assert content(path, tmp_path / "raw") == model

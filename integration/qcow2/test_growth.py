# SPDX-License-Identifier: Apache-2.0
"""Files that can't get longer: writes succeed while there is room, then fail."""

from __future__ import annotations

import errno
import os
import random
import resource
from typing import TYPE_CHECKING

import numpy as np

from integration.qcow2.record import RecordingNode, opened_on
from integration.qcow2.test_write import Model
from integration.qcow2.test_write_errors import Write, burst
from integration.qcow2.tools import check, content, opened, qemu_img, read, run
from vhostblk.block.drivers.qcow2.ahead import MIN_STREAM
from vhostblk.block.graph.node import BlockStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vhostblk.block.graph.backend import BlockBackend

SIZE = 8 << 20
#: Bytes that there is room for, and bytes that the guest writes.
ROOM, WRITTEN = 2 << 20, 4 << 20
STEP = 64 << 10


def make(tmp_path: Path) -> tuple[Path, Model]:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    return path, Model(bytes(SIZE))


def stream(rng: random.Random) -> Iterator[list[Write]]:
    """Yield bursts of consecutive writes."""
    for start in range(0, WRITTEN, 16 * STEP):
        yield [(at, rng.randbytes(STEP)) for at in range(start, start + 16 * STEP, STEP)]


async def fill_up(backend: BlockBackend, model: Model) -> list[int]:
    """Write more than there is room for; return the errnos."""
    codes: list[int] = []
    for writes in stream(random.Random("growth")):
        errors = await burst(backend, model, writes)
        codes += [each.errno or 0 for each in errors if isinstance(each, OSError)]
    await backend.flush()
    assert model.matches(0, await read(backend, 0, SIZE))
    return codes


def verify(path: Path, model: Model, tmp_path: Path) -> None:
    check(path)
    assert model.matches(0, content(path, tmp_path / "raw"))
    assert np.count_nonzero(model.data > 0) > ROOM // 2


class LimitedFile(RecordingNode):
    """A file of limited length."""

    async def truncate(self, size: int) -> None:
        if size > LIMIT:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        await super().truncate(size)


#: The maximum length of a file: a long stream, metadata, and little more.
LIMIT = MIN_STREAM + MIN_STREAM // 2


def test_a_stream_that_nothing_more_can_be_given_goes_on(tmp_path: Path) -> None:
    path, model = make(tmp_path)
    file, rng = LimitedFile(path.read_bytes()), random.Random("limited")
    end = LIMIT - 8 * STEP

    async def main() -> None:
        async with opened_on(file) as (node, backend):
            for start in range(0, end, 8 * STEP):
                writes = [(at, rng.randbytes(STEP)) for at in range(start, start + 8 * STEP, STEP)]
                assert not any(await burst(backend, model, writes))
            assert not (await node.block_status(end, 1)).status & BlockStatus.ALLOCATED
            assert model.matches(0, await read(backend, 0, SIZE))

    run(main())
    path.write_bytes(file.data)
    verify(path, model, tmp_path)


class FullDevice(RecordingNode):
    """A block device, whose length is fixed."""

    @property
    def grows_with_zeroes(self) -> bool:
        return False

    async def truncate(self, size: int) -> None:
        if size > len(self.data):
            raise OSError(errno.EINVAL, "Cannot grow device files")


def test_a_device_that_is_full(tmp_path: Path) -> None:
    path, model = make(tmp_path)
    file = FullDevice(path.read_bytes() + bytes(ROOM))
    codes: list[int] = []

    async def main() -> None:
        async with opened_on(file) as (_, backend):
            codes.extend(await fill_up(backend, model))

    run(main())
    assert set(codes) == {errno.ENOSPC}
    path.write_bytes(file.data)
    verify(path, model, tmp_path)


def test_a_device_that_becomes_longer(tmp_path: Path) -> None:
    """What it has there is no zeroes."""
    path, model = make(tmp_path)
    file = FullDevice(path.read_bytes())

    async def main() -> None:
        async with opened_on(file) as (_, backend):
            file.data += b"\xdd" * ROOM
            for start in (0, 8 * STEP):
                writes = [(start + at + 512, b"w" * 512) for at in range(0, 8 * STEP, STEP)]
                assert not any(await burst(backend, model, writes))
            assert model.matches(0, await read(backend, 0, SIZE))

    run(main())
    path.write_bytes(file.data)
    check(path)
    assert model.matches(0, content(path, tmp_path / "raw"))


def test_a_limit_on_the_length_of_files(tmp_path: Path) -> None:
    """The file can't grow as far in advance as usual, but as far as needed."""
    path, model = make(tmp_path)
    limit, before = resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE)
    codes: list[int] = []

    async def main() -> None:
        async with opened(path) as (_, backend):
            codes.extend(await fill_up(backend, model))

    resource.setrlimit(limit, (ROOM, before[1]))
    try:
        run(main())
    finally:
        resource.setrlimit(limit, before)
    assert set(codes) == {errno.EFBIG}
    verify(path, model, tmp_path)

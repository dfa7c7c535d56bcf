# SPDX-License-Identifier: Apache-2.0
"""Full file systems: all written data can be read, and the image has no errors."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

from integration.qcow2.bounded import BLOCK, BoundedNode
from integration.qcow2.record import RecordingNode, opened_on
from integration.qcow2.test_write import Model
from integration.qcow2.test_write_errors import Write, burst
from integration.qcow2.tools import check, content, qemu_img, qemu_io, read, run
from tests.frontend.blk import BlkDriver
from tests.frontend.launch import Daemon, Program
from tests.frontend.memory import Memory
from vhostblk.block.drivers.qcow2.layout import OFFSET_MASK
from vhostblk.virtio_blk.layout import RequestType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vhostblk.block.graph.backend import BlockBackend

SIZE = 16 << 20
#: Bytes of storage that are left when the guest begins to write, and bytes that it writes.
ROOM, WRITTEN = 1 << 20, 5 << 19


def stream(rng: random.Random) -> Iterator[list[Write]]:
    """Yield bursts of consecutive writes."""
    step = 64 << 10
    for start in range(0, WRITTEN, 8 * step):
        yield [(at, rng.randbytes(step)) for at in range(start, start + 8 * step, step)]


def scattered(rng: random.Random) -> Iterator[list[Write]]:
    """Yield bursts of small writes all over the disk."""
    places = rng.sample(range(0, SIZE, 16384), WRITTEN // 4096)
    yield from in_bursts([(at, rng.randbytes(4096)) for at in places])


def in_bursts(writes: list[Write]) -> Iterator[list[Write]]:
    """Split writes into bursts."""
    for first in range(0, len(writes), 32):
        yield writes[first : first + 32]


class Case(NamedTuple):
    """The form, content and use of an image."""

    form: str
    writes: Callable[[random.Random], Iterator[list[Write]]]
    #: Content of the image: "empty", "data", "snapshot" (shares its data with one), "bitmap".
    state: str = "empty"
    can_reserve: bool = True


CASES = {
    "stream": Case("cluster_size=64k", stream),
    "stream, lazy": Case("cluster_size=64k,lazy_refcounts=on", stream, "snapshot"),
    "stream, subclusters": Case("extended_l2=on,cluster_size=64k", stream, "snapshot"),
    "stream, with a bitmap": Case("cluster_size=64k", stream, "bitmap"),
    "stream, many tables": Case("cluster_size=4k,refcount_bits=64", stream, "snapshot"),
    "scattered, copied": Case("cluster_size=16k", scattered, "snapshot"),
    "scattered, tables with holes": Case("cluster_size=16k", scattered, "data"),
    "scattered, tiny clusters": Case("cluster_size=512,refcount_bits=64", scattered, "data"),
    "scattered, lazy": Case("cluster_size=4k,lazy_refcounts=on", scattered, "snapshot"),
    "scattered, no way to reserve": Case("cluster_size=4k", scattered, "data", can_reserve=False),
}


def make(tmp_path: Path, case: Case) -> tuple[Path, Model]:
    """Make an image; return its path and a model of its content."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", case.form, path, SIZE)
    if case.state in ("data", "snapshot"):
        qemu_io(path, "write -q -P 170 300k 300k", "write -q -P 85 5M 64k")
    if case.state == "snapshot":
        qemu_img("snapshot", "-c", "s", path)
    if case.state == "bitmap":
        qemu_img("bitmap", "--add", path, "b")
    return path, Model(content(path, tmp_path / "raw"))


async def fill_up(
    backend: BlockBackend, model: Model, bursts: Iterator[list[Write]]
) -> list[Write]:
    """Write until long after there is no room; return the writes that failed."""
    failed: list[Write] = []
    for writes in bursts:
        errors = await burst(backend, model, writes)
        failed += [each for each, error in zip(writes, errors, strict=True) if error]
        assert {error.errno for error in errors if isinstance(error, OSError)} <= {errno.ENOSPC}
    return failed


@pytest.mark.parametrize("name", CASES)
def test_what_was_written_before_the_file_system_was_full_is_there(
    tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    path, model = make(tmp_path, case)
    file = BoundedNode(path.read_bytes(), sparse=True)
    file.can_reserve = case.can_reserve
    file.room = len(file.blocks) + ROOM // BLOCK
    failed: list[Write] = []

    def verify() -> None:
        path.write_bytes(file.data)
        check(path)
        assert model.matches(0, content(path, tmp_path / "raw"))

    async def main() -> None:
        async with opened_on(file) as (_, backend):
            failed.extend(await fill_up(backend, model, case.writes(random.Random(name))))
            await backend.flush()
            assert model.matches(0, await read(backend, 0, SIZE))

    async def once_there_is_room() -> None:
        file.room = 1 << 30
        async with opened_on(file) as (_, backend):
            assert not await fill_up(backend, model, in_bursts(failed))

    run(main())
    assert failed
    verify()
    run(once_there_is_room())
    assert (model.data != -1).all()
    verify()


def test_a_table_that_gets_no_storage_takes_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in a hole of the file, as in a sparse copy; the data has storage."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    qemu_io(path, "write -q -P 1 0 64k")
    file, model = RecordingNode(path.read_bytes()), Model(content(path, tmp_path / "raw"))

    async def main() -> None:
        async with opened_on(file) as (node, backend):
            places, ensure = node._image.places, node._image.places.ensure
            table = int(node._image.tables.l1[0]) & OFFSET_MASK

            async def ensure_others(offset: int) -> None:
                if offset & -(64 << 10) == table:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                await ensure(offset)

            monkeypatch.setattr(places, "ensure", ensure_others)
            node._image.allocator.hint = node._image.allocator.high_water  # as after a burst
            writes = [(at, b"w" * 4096) for at in range(1 << 20, 2 << 20, 64 << 10)]
            errors = await burst(backend, model, writes)
            assert {getattr(each, "errno", 0) for each in errors} == {errno.ENOSPC}
            monkeypatch.undo()
            assert not any(await burst(backend, model, writes))
            await backend.flush()

    run(main())
    path.write_bytes(file.data)
    check(path)
    assert model.matches(0, content(path, tmp_path / "raw"))


@pytest.mark.parametrize("first", [600, 1100])
def test_clusters_that_are_taken_can_be_counted(tmp_path: Path, first: int) -> None:
    """Flushes always succeed. The refcount is in a hole of its block, or in a new block."""
    path, outcomes = tmp_path / "disk.qcow2", set[bool]()
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=8k,refcount_bits=64", path, SIZE)

    async def main(room: int) -> bool:
        file = BoundedNode(path.read_bytes(), sparse=True)
        async with opened_on(file) as (node, backend):
            node._image.allocator.hint = first
            file.room = len(file.blocks) + room
            model = Model(bytes(SIZE))
            (error,) = await burst(backend, model, [(0, b"w" * 8192)])
            await backend.flush()
            file.room = 1 << 30
        return error is None

    for room in range(12):
        outcomes.add(run(main(room)))
    assert outcomes == {False, True}


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Path]:
    """Mount an ext4 file system with some 19 MiB of room."""
    device, where = tmp_path / "ext4", tmp_path / "mounted"
    where.mkdir()
    with device.open("wb") as made:
        made.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(device)], check=True)
    command = ["mount", "-o", "loop", str(device), str(where)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mount: {mounted.stderr.strip()}")
    yield where
    subprocess.run(["umount", str(where)], check=True)


@pytest.mark.parametrize("form", ["cluster_size=64k", "cluster_size=4k,lazy_refcounts=on"])
def test_a_guest_that_fills_a_real_file_system(
    tmp_path: Path, small_file_system: Path, directory: Path, form: str
) -> None:
    path, rng = small_file_system / "disk.qcow2", random.Random(form)
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, 64 << 20)
    blockdevs = [
        f"driver=file,node-name=file,filename={path}",
        "driver=qcow2,node-name=disk,file=file",
    ]
    export = "id=export,node-name=disk,writable=on,iothread=io0"
    written: dict[int, bytes] = {}
    failed: set[int] = set()
    memory = Memory()
    extra = ["--object", "iothread,id=io0"]
    with Daemon(Program.VHOSTBLK, directory, blockdevs, export, extra=extra) as daemon:
        with BlkDriver(daemon.connect(), memory) as driver:
            for start in range(0, 30 << 20, 2 << 20):
                sent = {}
                for offset in range(start, start + (2 << 20), 65536):
                    data = rng.randbytes(65536)
                    request = driver.submit(RequestType.OUT, offset, data_out=[data])
                    sent[request.head] = offset
                    written[offset] = data
                driver.kick()
                failed |= {sent[request.head] for request, _ in driver.drain() if request.status}
            driver.flush()
            driver.stop()
        assert daemon.stop() == 0
        assert all(
            line.endswith("No space left on device") for line in daemon.output().split("\n")[:-1]
        )
    memory.close()
    check(path)
    # Failed writes may have any effect; all others must be there.
    assert 0 < len(failed) < len(written) // 2
    found = content(path, tmp_path / "raw")
    for offset in written.keys() - failed:
        assert found[offset : offset + 65536] == written[offset], offset

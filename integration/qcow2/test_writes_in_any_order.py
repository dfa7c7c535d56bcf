# SPDX-License-Identifier: Apache-2.0
"""Between two flushes, writes may reach the disk in any order, or never.

So a crash between two flushes may leave only one of the writes, or all but one. A plain reader
checks each of these states: all references are valid and exclusive, flushed data is there, and each
later write has its old or its new content. This finds flushes that are missing or come too late.
"""

from __future__ import annotations

import asyncio
import errno
import random
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from integration.qcow2.record import Change, RecordingNode, apply_change, opened_on
from integration.qcow2.tools import qemu_img, qemu_io, run, write
from tests.model.qcow2_reader import Image
from vhostblk.block.drivers.qcow2.allocator import Allocator
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.iovec import IoVec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Bytes = NDArray[np.int16]

    from vhostblk.block.drivers.qcow2.node import Qcow2Node
    from vhostblk.block.graph.backend import BlockBackend

SIZE = 192 << 10
#: The offset of compressed clusters.
PACKED = 160 << 10
#: The number of writes that are tried in a stretch without a flush; if there are more, a sample.
MOST = 10

#: Formats, and with or without snapshots.
CASES = [
    ("cluster_size=512", False),
    ("cluster_size=512,refcount_bits=64", True),
    ("cluster_size=4k,refcount_bits=4", True),
    ("cluster_size=4k,lazy_refcounts=on", False),
    ("cluster_size=16k,extended_l2=on", False),
    ("cluster_size=16k,extended_l2=on", True),
]


class Version(NamedTuple):
    """The content of the disk from a place in the log on; -1 for undefined bytes."""

    begins: int
    data: Bytes


class Recorded:
    """A run on a recorded file, and its possible results."""

    def __init__(self, file: RecordingNode, disk: bytes) -> None:
        self.file = file
        #: The successive contents of the disk.
        self.versions = [Version(0, np.frombuffer(disk, np.uint8).astype(np.int16))]
        #: (place in the log, version number): from there on, the version is durable.
        self.durable = [(0, 0)]
        #: Snapshots: first and last place in the log, name, content.
        self.snapshots: list[tuple[int, int, str, Bytes]] = []

    @property
    def data(self) -> Bytes:
        """The present content of the disk."""
        return self.versions[-1].data

    def change(self, offset: int, data: bytes | int) -> None:
        """Note a change that is about to begin; `data` as a number: this many undefined bytes."""
        after = self.data.copy()
        if isinstance(data, int):
            after[offset : offset + data] = -1
        else:
            after[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        self.versions.append(Version(len(self.file.log), after))

    def flushed(self, version: int) -> None:
        """Note that a version is durable from now on."""
        self.durable.append((len(self.file.log), version))

    def possible(self, moment: int) -> list[Bytes]:
        """Return the possible contents of the disk after a crash at a place in the log."""
        first = max(version for place, version in self.durable if place <= moment)
        return [each.data for each in self.versions[first:] if each.begins <= moment]


class Client:
    """Uses a disk, and notes its possible contents."""

    def __init__(self, node: Qcow2Node, backend: BlockBackend, recorded: Recorded) -> None:
        self._node, self.backend, self.recorded = node, backend, recorded
        self.cluster_size = node.cluster_size

    async def write(self, offset: int, data: bytes) -> None:
        self.recorded.change(offset, data)
        await write(self.backend, offset, data)

    async def compress(self, offset: int, data: bytes) -> None:
        self.recorded.change(offset, data)
        iov = IoVec.from_buffers([bytearray(data)])
        await self.backend.pwritev(offset, iov, WriteFlags.WRITE_COMPRESSED)

    async def zero(self, offset: int, length: int) -> None:
        self.recorded.change(offset, bytes(length))
        await self.backend.pwrite_zeroes(offset, length, WriteFlags.MAY_UNMAP)

    async def discard(self, offset: int, length: int) -> None:
        self.recorded.change(offset, length)
        await self.backend.pdiscard(offset, length)

    async def flush(self) -> None:
        version = len(self.recorded.versions) - 1
        await self.backend.flush()
        self.recorded.flushed(version)

    async def resize(self, size: int) -> None:
        """Change the disk's length, without a backing file; the new part reads as zeroes."""
        after = np.zeros(size, np.int16)
        kept = self.recorded.data[:size]
        after[: len(kept)] = kept
        if size < len(self.recorded.data):  # the part past the new end may be lost first
            self.recorded.change(size, len(self.recorded.data) - size)
        self.recorded.versions.append(Version(len(self.recorded.file.log), after))
        await self.backend.truncate(size)
        self.recorded.flushed(len(self.recorded.versions) - 1)

    async def snapshot(self, name: str) -> None:
        data = self.recorded.data.copy()
        version = len(self.recorded.versions) - 1
        await self._node.create_snapshot(name)
        self.recorded.flushed(version)
        place = len(self.recorded.file.log)
        self.recorded.snapshots.append((place, 1 << 62, name, data))

    async def go_back(self, name: str) -> None:
        (data,) = (data for _, _, each, data in self.recorded.snapshots if each == name)
        self.recorded.versions.append(Version(len(self.recorded.file.log), data))
        await self._node.apply_snapshot(name=name)
        self.recorded.flushed(len(self.recorded.versions) - 1)

    async def forget(self, name: str) -> None:
        place = len(self.recorded.file.log)
        self.recorded.snapshots = [
            (low, place if each == name else high, each, data)
            for low, high, each, data in self.recorded.snapshots
        ]
        await self._node.delete_snapshot(name=name)


def some(rng: random.Random, count: int) -> list[tuple[int, bytes]]:
    """Return writes that don't overlap each other."""
    places = rng.sample(range(SIZE // 4096), count)
    return [
        (at * 4096 + rng.choice([0, 512]), rng.randbytes(rng.choice([512, 1024, 3584])))
        for at in places
    ]


async def use(client: Client, rng: random.Random, cluster: int, snapshots: bool) -> None:
    """Change metadata in all ways, with flushes in between."""
    whole = max(cluster, 4096)

    async def burst(count: int) -> None:
        await asyncio.gather(*(client.write(*each) for each in some(rng, count)))

    for turn in range(2):
        await burst(8)
        await client.flush()
        await client.discard(32768 * turn, 3 * whole)
        await client.zero(32768 * turn + 81920, 2 * whole)
        await burst(4)
        await client.flush()
        await burst(6)  # reuses free clusters
        during = [client.write(*each) for each in some(rng, 4)]
        await asyncio.gather(client.flush(), *during)
        await client.flush()
        data = (rng.randbytes(cluster // 3) + bytes(cluster))[:cluster]
        await client.compress(PACKED, data)
        await client.compress(PACKED + cluster, data)
        await client.flush()
        await client.write(PACKED, rng.randbytes(512))
        await client.flush()
        if snapshots:
            await client.snapshot(f"s{turn}")
            await burst(6)
            await client.flush()
        if snapshots and turn:
            await burst(3)
            await client.go_back("s0")
            await burst(6)
            await client.flush()
    if snapshots:
        await client.forget("s1")
        await burst(6)
        await client.flush()


def stretches(log: list[Change]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) in the log of each stretch between two flushes."""
    start = 0
    for place, change in enumerate([*log, None]):
        if change is None:
            if place > start:
                yield start, place
            start = place + 1


def states(
    before: bytes, log: list[Change], rng: random.Random
) -> Iterator[tuple[int, bytes, str]]:
    """Yield states that a crash may leave: place in the log, content of the file, description."""
    file = bytearray(before)
    # The file grows by far more than is used.
    end = max(offset + len(data) for offset, data in filter(None, log) if data is not None)
    for start, stop in stretches(log):
        changes = [
            (min(offset, end), data) if data is None else (offset, data)
            for offset, data in filter(None, log[start:stop])
        ]
        numbers = range(len(changes))
        for number in sorted(rng.sample(numbers, MOST)) if len(changes) > MOST else numbers:
            for alone in (True, False):
                state = bytearray(file)
                for place, change in enumerate(changes):
                    if (place == number) == alone:
                        apply_change(state, change)
                offset, data = changes[number]
                what = f"{len(data)} bytes at {offset:#x}" if data is not None else f"size {offset}"
                why = f"{'only' if alone else 'all but'} {start + number} of {start}-{stop}: {what}"
                yield start + number + 1 if alone else stop, bytes(state), why
        for change in changes:
            apply_change(file, change)


def judge(recorded: Recorded, moment: int, state: bytes, base: bytes, why: str) -> None:
    """Check a state that a crash at a place in the log may leave."""
    image = Image(state)
    findings = image.check()
    dangerous = findings.corruptions + findings.shared + ([] if image.dirty else findings.low)
    assert not dangerous, f"{why}: {dangerous}"
    below = np.frombuffer(base, np.uint8)
    assert matches(image.content(below), recorded.possible(moment)), why
    snapshots = {each.name: each for each in image.snapshots}
    for low, high, name, data in recorded.snapshots:
        if low <= moment < high:
            assert matches(image.content(below, snapshots[name]), [data]), f"{why}: snapshot {name}"


def matches(found: NDArray[np.uint8], possible: list[Bytes]) -> bool:
    """Return whether each byte has one of its possible values."""
    read = found.astype(np.int16)
    fits = np.zeros(len(read), np.bool_)
    for data in reversed(possible):
        if len(data) == len(read):
            fits |= (data == read) | (data == -1)
            if fits.all():
                return True
    return False


async def record(
    before: bytes,
    disk: bytes,
    use: Callable[[Client], Awaitable[None]],
    base: bytes = b"",
    **members: Any,
) -> Recorded:
    """Record the writes of a run to an image, perhaps with a backing file `base`."""
    file = RecordingNode(before)
    backing = RecordingNode(base, "base") if base else None
    recorded = Recorded(file, disk)
    async with opened_on(file, backing, discard="unmap", **members) as disk_node:
        await use(Client(*disk_node, recorded))
    return recorded


def judge_all(before: bytes, recorded: Recorded, rng: random.Random, base: bytes = b"") -> None:
    """Check the states that crashes at all points may leave."""
    count = 0
    for moment, state, why in states(before, recorded.file.log, rng):
        judge(recorded, moment, state, base, why)
        count += 1
    assert count > 20


@pytest.mark.parametrize(("form", "snapshots"), CASES)
def test_any_write_may_be_there_or_not(tmp_path: Path, form: str, snapshots: bool) -> None:
    base = random.Random(form).randbytes(SIZE) if snapshots or "extended" in form else b""
    path = tmp_path / "disk.qcow2"
    words = []
    if base:
        (tmp_path / "base").write_bytes(base)
        words = ["-b", str(tmp_path / "base"), "-F", "raw"]
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, *words, path, SIZE)
    qemu_io(path, "write -q -P 170 20k 40k", "write -q -P 85 100k 10k")
    before, rng = path.read_bytes(), random.Random(form)
    disk = Image(before).content(np.frombuffer(base, np.uint8)).tobytes()

    async def client(client: Client) -> None:
        await use(client, rng, client.cluster_size, snapshots)

    small = {"l2_cache_size": 2048, "l2_cache_entry_size": 512}
    recorded = run(record(before, disk, client, base, **small))
    judge_all(before, recorded, rng, base)


async def resize(client: Client, rng: random.Random) -> None:
    """Grow past the end of tables, and shrink, with writes and flushes in between."""

    async def burst(low: int, high: int) -> None:
        places = rng.sample(range(low, high, 4096), 5)
        await asyncio.gather(*(client.write(at, rng.randbytes(1024)) for at in places))
        await client.flush()

    await burst(0, SIZE)
    await client.resize(2 * SIZE)
    await burst(SIZE, 2 * SIZE)
    await client.resize(SIZE // 2 + 512)
    await burst(0, SIZE // 2)
    await client.resize(SIZE + 1024)
    await burst(SIZE // 2, SIZE)
    await client.resize(4 * SIZE)
    await burst(3 * SIZE, 4 * SIZE)


@pytest.mark.parametrize("form", ["cluster_size=512", "cluster_size=4k,lazy_refcounts=on"])
def test_any_write_of_a_resize_may_be_there_or_not(tmp_path: Path, form: str) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, SIZE)
    qemu_io(path, "write -q -P 170 20k 40k", "write -q -P 85 100k 10k")
    before, rng = path.read_bytes(), random.Random(form)
    disk = Image(before).content().tobytes()
    recorded = run(record(before, disk, lambda client: resize(client, rng)))
    judge_all(before, recorded, rng)


def test_any_write_may_be_there_or_not_while_the_refcount_table_grows(tmp_path: Path) -> None:
    """It has 64 entries for 64 clusters each, which covers 2 MiB."""
    path, size = tmp_path / "disk.qcow2", 3 << 20
    form = "cluster_size=512,refcount_bits=64"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, size)
    qemu_io(path, "write -q -P 170 0 1800k")
    before, rng = path.read_bytes(), random.Random("table")
    table = Image(before).reftable_offset

    async def fill(client: Client) -> None:
        for at in range(1800 << 10, 2000 << 10, 40 << 10):
            await client.write(at, rng.randbytes(40 << 10))
            await client.write(at // 2, rng.randbytes(512))
            await client.flush()

    recorded = run(record(before, Image(before).content().tobytes(), fill))
    assert Image(bytes(recorded.file.data)).reftable_offset != table
    judge_all(before, recorded, rng)


async def leave_garbage(client: Client, rng: random.Random) -> None:
    """Make free clusters that are not zeroes."""
    await client.write(0, rng.randbytes(SIZE // 2))
    await client.flush()
    await client.discard(0, SIZE // 4)
    await client.flush()


@pytest.mark.parametrize("form", ["cluster_size=512", "cluster_size=16k,extended_l2=on"])
def test_a_flush_that_failed_is_made_up_for(tmp_path: Path, form: str) -> None:
    """Its data is flushed once more before tables refer to it."""
    path, rng = tmp_path / "disk.qcow2", random.Random(form)
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, SIZE)
    before = path.read_bytes()
    fails = 0

    async def use(client: Client) -> None:
        nonlocal fails
        file, flush = client.recorded.file, client.recorded.file.flush

        async def fail() -> None:
            nonlocal fails
            fails += 1
            raise OSError(errno.EIO, "injected")

        await leave_garbage(client, rng)
        for turn in range(6):
            await client.write(4096 * turn, rng.randbytes(1024))
            file.flush = fail  # type: ignore[method-assign]
            with pytest.raises(OSError, match="injected"):
                await client.flush()
            file.flush = flush  # type: ignore[method-assign]
            await client.flush()

    recorded = run(record(before, bytes(SIZE), use))
    assert fails == 6
    judge_all(before, recorded, rng)


def test_a_table_that_nothing_came_into_is_zeroed_before_anything_leads_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cluster was used before, and there is no room for the data."""
    path, rng = tmp_path / "disk.qcow2", random.Random("table")
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, SIZE)
    before = path.read_bytes()

    async def refuse(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "injected")

    async def use(client: Client) -> None:
        await leave_garbage(client, rng)
        for place in range(SIZE // 2, SIZE, 32768):
            with monkeypatch.context() as patch:
                patch.setattr(Allocator, "allocate", refuse)
                with pytest.raises(OSError, match="injected"):
                    await write(client.backend, place, b"x" * 512)
            await client.flush()

    recorded = run(record(before, bytes(SIZE), use))
    judge_all(before, recorded, rng)

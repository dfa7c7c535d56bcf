# SPDX-License-Identifier: Apache-2.0
"""Tests of the judges: they accept correct data, and notice errors."""

from __future__ import annotations

import random
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.model import sparse
from tests.model.bitmaps import BitmapError, BitmapModel
from tests.model.content import GARBAGE, GARBAGE_BYTE, MIXED, SECTOR, ZERO, decode, encode
from tests.model.crash import Cut, state
from tests.model.disk import Clock, Disk, MismatchError
from tests.model.images import qemu_img
from tests.model.program import Act, Burst, Op, Options, Program
from tests.model.qcow2_reader import Image
from tests.model.run import run
from tests.model.store import Flush, StoreNode, Yard

if TYPE_CHECKING:
    from pathlib import Path


# Content.


@pytest.mark.parametrize("token", [1, 5, 13, 1000])
def test_sectors_say_which_write_they_are_from(token: int) -> None:
    data = encode(token, 7, 3)
    assert decode(data, 7).tolist() == [token] * 3
    assert decode(data, 8).tolist() == [MIXED] * 3  # in another place
    torn = data[:100] + bytes(SECTOR - 100) + data[SECTOR:]
    assert decode(torn, 7).tolist() == [MIXED, token, token]
    assert decode(bytes(SECTOR) + bytes([GARBAGE_BYTE]) * SECTOR, 0).tolist() == [ZERO, GARBAGE]


# The history of a disk.


def read(disk: Disk, *values: int) -> None:
    """Let a read return these values for the first sectors."""
    begun = disk.begin_read(0, len(values))
    disk.end_read(0, begun, b"".join(encode(value, at, 1) for at, value in enumerate(values)))


def test_what_was_acknowledged_is_read() -> None:
    disk = Disk(Clock(), 8)
    read(disk, 0, 0)
    disk.end(disk.begin(0, 1, 1))
    read(disk, 1, 0)
    for wrong in ((0, 0), (1, 1), (2, 0)):
        with pytest.raises(MismatchError):
            read(disk, *wrong)


def test_of_writes_that_met_either_comes_last_and_then_stays() -> None:
    disk = Disk(Clock(), 8)
    one, other = disk.begin(0, 2, 1), disk.begin(0, 2, 2)
    disk.end(other)
    disk.end(one)
    read(disk, 1, 2)
    with pytest.raises(MismatchError):
        read(disk, 2, 2)


def test_a_write_in_flight_is_there_or_not_and_does_not_come_back() -> None:
    disk = Disk(Clock(), 8)
    change = disk.begin(0, 2, 1)
    read(disk, 0, 1)
    disk.end(change, failed=True)
    read(disk, 0, 1)
    with pytest.raises(MismatchError):
        read(disk, 1, 1)


def test_discarded_sectors_are_what_they_were_or_zeroes() -> None:
    for garbage in (False, True):
        disk = Disk(Clock(), 8, garbage=garbage)
        disk.end(disk.begin(0, 2, 1))
        disk.end(disk.begin(0, 2, ZERO, discard=True))
        begun = disk.begin_read(1, 1)
        left = bytes([GARBAGE_BYTE]) * SECTOR
        if garbage:
            disk.end_read(1, begun, left)
        else:
            with pytest.raises(MismatchError):
                disk.end_read(1, begun, left)
            read(disk, 0, 1)


def test_a_view_stays_as_the_disk_was() -> None:
    disk = Disk(Clock(), 8)
    disk.end(disk.begin(0, 2, 1))
    pending = disk.begin(1, 1, 2)
    view = disk.view()
    disk.finish(view)
    disk.end(pending)
    disk.end(disk.begin(0, 2, 3))
    disk.check(view.part(0, 2), 0, encode(1, 0, 1) + encode(2, 1, 1))
    disk.check(view.part(0, 2), 0, encode(1, 0, 2))
    with pytest.raises(MismatchError):
        disk.check(view.part(0, 2), 0, encode(3, 0, 2))
    start = disk.clock.tick()
    disk.return_to(start, view)
    read(disk, 1, 2)
    with pytest.raises(MismatchError):
        read(disk, 3, 3)


def test_a_power_cut_leaves_what_was_flushed_or_comes_later() -> None:
    disk = Disk(Clock(), 8)
    disk.end(disk.begin(0, 1, 1))
    disk.flushed(disk.clock.tick())
    disk.end(disk.begin(0, 1, 2))
    disk.end(disk.begin(1, 1, 3), through=True)
    view = disk.after_cut(disk.clock.now)
    for good in (1, 2):
        disk.check(view.part(0, 2), 0, encode(good, 0, 1) + encode(3, 1, 1))
    for first, second in ((0, 3), (1, 0)):
        with pytest.raises(MismatchError):
            disk.check(view.part(0, 2), 0, encode(first, 0, 1) + encode(second, 1, 1))
    disk.cut(view)
    disk.flushed(disk.clock.tick())  # it can't make lost writes durable
    disk.check(disk.after_cut(disk.clock.now).part(0, 1), 0, encode(1, 0, 1))


def test_a_disk_that_grows_has_zeroes_there() -> None:
    disk = Disk(Clock(), 4)
    disk.end(disk.begin(2, 2, 1))
    disk.resized(disk.clock.tick(), 2)
    disk.resized(disk.clock.tick(), 4)
    for view in (disk.view(), disk.after_cut(disk.clock.now)):
        disk.check(view.part(0, 4), 0, bytes(4 * SECTOR))
        with pytest.raises(MismatchError):
            disk.check(view.part(2, 1), 2, encode(1, 2, 1))


def test_bitmaps_have_all_that_changed_and_no_more() -> None:
    bitmap = BitmapModel(16, 1024, persistent=False)
    bitmap.since = 0
    bitmap.started(3, 2)
    bitmap.succeeded(3, 1, 1)
    for dirty in ([1], [1, 2]):
        bits = np.zeros(8, np.bool_)
        bits[dirty] = True
        bitmap.check("b", bits)
    for dirty in ([2], [1, 3]):
        bits = np.zeros(8, np.bool_)
        bits[dirty] = True
        with pytest.raises(BitmapError):
            bitmap.check("b", bits)


# Images, against QEMU.


@pytest.mark.parametrize(
    "form",
    [
        "cluster_size=512",
        "compat=0.10,cluster_size=4k",
        "extended_l2=on,cluster_size=16k",
        "cluster_size=4k,refcount_bits=2",
        "compression_type=zstd,refcount_bits=64",
    ],
)
def test_images_read_as_qemu_reads_them(tmp_path: Path, form: str) -> None:
    path, raw, old = (tmp_path / name for name in ("disk.qcow2", "raw", "old"))
    rng = random.Random(form)
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, 5 << 20)
    _scribble(path, rng)
    qemu_img("snapshot", "-c", "s", path)
    _scribble(path, rng)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", "-l", "s", path, old)
    image = Image(sparse.load(path))
    assert image.content().tobytes() == raw.read_bytes()
    assert image.content(None, image.snapshots[0]).tobytes() == old.read_bytes()
    _assert_clean(image)
    qemu_img("convert", "-c", "-f", "qcow2", "-O", "qcow2", "-o", form, path, old)
    packed = Image(sparse.load(old))
    assert packed.content().tobytes() == raw.read_bytes()
    _assert_clean(packed)


def _scribble(path: Path, rng: random.Random) -> None:
    words = ["qemu-io", "-f", "qcow2", str(path)]
    for _ in range(30):
        offset = rng.randrange(9 << 10) * SECTOR
        length = rng.choice([SECTOR, 4096, 70 << 10])
        what = rng.choice([f"write -P {rng.randrange(1, 255)}", "write -z", "write -zu", "discard"])
        words += ["-c", f"{what} {offset} {length}"]
    subprocess.run(words, check=True, capture_output=True)


def _assert_clean(image: Image) -> None:
    findings = image.check()
    assert not findings.corruptions
    assert not findings.low
    assert not findings.shared
    assert not findings.copied
    assert not findings.leaks


def test_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, 1 << 20)
    subprocess.run(["qemu-io", "-f", "qcow2", path, "-c", "write 0 4k"], check=True)
    good = sparse.load(path)
    cluster = 1 << 16
    blocks = Image(good).reftable_offset + cluster
    for count, what in ((0, "low"), (2, "leaks"), (2, "copied")):
        bad = good.copy()
        bad[blocks + 2 * 5 + 1] = count  # the refcount of the cluster with the data
        assert getattr(Image(bad).check(), what)


# Files.


def test_what_was_not_flushed_is_there_or_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * SECTOR))
    yard = Yard(Clock())
    yard.recording = True
    file = yard.file(str(path))
    first = file.record(yard.clock.tick(), 0, b"a" * SECTOR)
    first.done = yard.clock.tick()
    second = file.record(yard.clock.tick(), SECTOR, b"b" * SECTOR)
    file.flushes.append(Flush(yard.clock.tick(), yard.clock.tick()))
    second.done = yard.clock.tick()  # not before the flush
    now = yard.clock.now
    found = {state(file, now, Cut.SOME, random.Random(n)).tobytes()[:1024] for n in range(30)}
    whole = [b"a" * SECTOR + part * SECTOR for part in (b"\0", b"b")]
    assert found == set(whole)
    assert state(file, now, Cut.NONE, random.Random()).tobytes()[:1024] == whole[0]
    assert state(file, now, Cut.KILLED, random.Random()).tobytes()[:1024] == whole[1]


# Everything together.

_PROGRAM = Program(
    Options(size=4096, cluster_bits=12),
    (Burst((Op("write", 0, 8, 8, 16), Op("flush"))), Act("restart"), Burst((Op("write", 4, 8),))),
)


def test_a_write_that_is_lost_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    run(_PROGRAM)
    write = StoreNode._write
    count = 0

    async def lossy(self: StoreNode, offset: int, data: bytes) -> None:
        nonlocal count
        count += 1
        if count != 5:
            await write(self, offset, data)

    monkeypatch.setattr(StoreNode, "_write", lossy)
    with pytest.raises(AssertionError):
        run(_PROGRAM)


def test_a_flush_that_does_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(size=4096, cluster_bits=12, cuts=True)
    program = Program(options, (Burst((Op("write", 0, 8), Op("flush")), 1),))
    run(program)

    async def nothing(self: StoreNode) -> None:
        pass

    monkeypatch.setattr(StoreNode, "flush", nothing)
    with pytest.raises(AssertionError, match="after a cut"):
        run(program)


def test_programs_are_written_down_and_read_again() -> None:
    options = Options(members={"l2-cache-size": 1024}, above=("raw",), cuts=True)
    steps = (
        Burst((Op("write", 1, 2, 3, 4), Op("flush", 0, 0)), 4, 1, (Act("cache", {"on": False}),)),
        Act("restart"),
    )
    program = Program(options, steps)
    assert Program.from_json(program.to_json()) == program

# SPDX-License-Identifier: Apache-2.0
"""Disks that become shorter: what was cut off is not seen again, and what it takes of the file."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from integration.qcow2.commands import count_past_end, find_harm
from integration.qcow2.record import RecordingNode, crashes, opened_on
from integration.qcow2.tools import check, content, opened, qemu_img, qemu_io, read, run, write
from tests.block.support import fails_with

if TYPE_CHECKING:
    from pathlib import Path

CLUSTER = 4096
#: What an L2 table maps.
TABLE = CLUSTER // 8 * CLUSTER
SIZE = 4 * TABLE
#: In the middle of a table, and at the end of one.
SIZES = [TABLE + TABLE // 2, 2 * TABLE]
OLD = b"\7"


def make(path: Path, *, snapshot: bool = False) -> bytes:
    """Make an image that has something in each of its tables; return the disk."""
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER}", path, SIZE)
    starts = range(0, SIZE, TABLE // 4)
    qemu_io(path, *(f"write -q -P {OLD[0]} {start} {2 * CLUSTER}" for start in starts))
    if snapshot:
        qemu_img("snapshot", "-c", "s", path)
    disk = bytearray(SIZE)
    for start in starts:
        disk[start : start + 2 * CLUSTER] = OLD * (2 * CLUSTER)
    return bytes(disk)


def _size_in(image: bytes | bytearray) -> int:
    """Return the disk's length as the header says it."""
    return int.from_bytes(image[24:32], "big")


class FullDevice(RecordingNode):
    """A file in a file system that is full: it can't get longer."""

    @property
    def grows_with_zeroes(self) -> bool:
        return False

    async def truncate(self, size: int) -> None:
        if size > len(self.data):
            raise OSError(errno.ENOSPC, "No space left on device")
        await super().truncate(size)

    def _write(self, offset: int, data: bytes) -> None:
        if offset + len(data) > len(self.data):
            raise OSError(errno.ENOSPC, "No space left on device")
        super()._write(offset, data)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("snapshot", [False, True])
def test_qemu_does_not_show_again_what_a_crash_cut_off(
    tmp_path: Path, size: int, snapshot: bool
) -> None:
    path = tmp_path / "disk.qcow2"
    disk = make(path, snapshot=snapshot)
    before = path.read_bytes()
    file = RecordingNode(before)

    async def main() -> list[bytes]:
        async with opened_on(file) as (_, backend):
            await backend.truncate(size)
            return list(crashes(before, file.log))

    states = run(main())
    shorter = [state for state in states if _size_in(state) == size]
    assert 0 < len(shorter) < len(states)
    for state in [*shorter[:3], shorter[-1]]:
        path.write_bytes(state)
        qemu_img("resize", "-q", "-f", "qcow2", path, SIZE)
        assert content(path, tmp_path / "raw") == disk[:size].ljust(SIZE, b"\0")


@pytest.mark.parametrize("size", [*SIZES, 0, TABLE // 2 + 512])
@pytest.mark.parametrize("snapshot", [False, True])
def test_both_programs_go_on_with_a_shorter_disk(tmp_path: Path, size: int, snapshot: bool) -> None:
    path, raw = tmp_path / "disk.qcow2", tmp_path / "raw"
    disk = make(path, snapshot=snapshot)

    async def main() -> None:
        async with opened(path) as (_, backend):
            await write(backend, SIZE - CLUSTER, b"n" * CLUSTER)  # in memory only
            await backend.truncate(size)
            if size:
                await write(backend, size - 512, b"w" * 512)
            await backend.flush()

    run(main())
    check(path)
    expected = (disk[: max(size - 512, 0)] + b"w" * 512)[:size]
    assert content(path, raw) == expected
    qemu_img("resize", "-q", "-f", "qcow2", path, SIZE)
    check(path)
    rest = -(-size // CLUSTER) * CLUSTER
    seen = content(path, raw)
    assert seen[:size] == expected
    assert seen[rest:] == bytes(SIZE - rest)
    if snapshot:
        qemu_img("snapshot", "-a", "s", path)
        check(path)
        assert content(path, raw) == disk


def test_a_disk_of_no_length_grows_again(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    make(path)

    async def main() -> None:
        async with opened(path) as (_, backend):
            await backend.truncate(0)
            await backend.truncate(SIZE)
            await write(backend, TABLE, b"w" * 512)
            assert await read(backend, 0, SIZE) == bytes(TABLE) + (b"w" * 512).ljust(
                SIZE - TABLE, b"\0"
            )

    run(main())
    check(path)


@pytest.mark.parametrize("snapshot", [False, True])
def test_tables_past_the_end_go_where_nothing_can_be_allocated(
    tmp_path: Path, snapshot: bool
) -> None:
    """They are not copied, even if a snapshot shares them."""
    path = tmp_path / "disk.qcow2"
    disk = make(path, snapshot=snapshot)
    file = FullDevice(path.read_bytes())

    async def main() -> None:
        async with opened_on(file) as (node, backend):
            await backend.truncate(2 * TABLE)
            assert not await count_past_end(node._image)
            assert await read(backend, 0, 2 * TABLE) == disk[: 2 * TABLE]

    run(main())
    path.write_bytes(file.data)
    check(path)
    assert content(path, tmp_path / "raw") == disk[: 2 * TABLE]


def test_a_table_is_divided_in_place_where_it_cannot_be_copied(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    disk, size = make(path), SIZES[0]
    before = path.read_bytes()
    file = FullDevice(before)

    async def main() -> list[bytes]:
        async with opened_on(file) as (node, backend):
            await backend.truncate(size)
            assert not await count_past_end(node._image)
            assert await read(backend, 0, size) == disk[:size]
            return list(crashes(before, file.log))

    async def look(state: bytes) -> None:
        async with opened_on(RecordingNode(state), read_only=True) as (node, backend):
            assert not await find_harm(node._image)
            if node.size == size:
                assert not await count_past_end(node._image)
            seen = await read(backend, 0, node.size)
            assert seen[:size] == disk[:size]
            # What the table has past the new end may be gone, the rest not.
            assert seen[2 * TABLE :] in (b"", disk[2 * TABLE :])

    for state in run(main()):
        run(look(state))
    path.write_bytes(file.data)
    check(path)


def test_a_shared_table_that_cannot_be_copied_leaves_the_disk_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    disk = make(path, snapshot=True)
    file = FullDevice(path.read_bytes())

    async def main() -> None:
        async with opened_on(file) as (node, backend):
            with fails_with(errno.ENOSPC):
                await backend.truncate(SIZES[0])
            assert node.size == backend.size == SIZE
            assert await read(backend, 0, SIZE) == disk

    run(main())
    path.write_bytes(file.data)
    check(path)
    assert content(path, tmp_path / "raw") == disk


def test_a_crash_leaves_nothing_in_a_raw_data_file_past_the_end(tmp_path: Path) -> None:
    """A raw data file reads the same as the disk: QEMU would show it when the disk grows."""
    path, data = tmp_path / "disk.qcow2", tmp_path / "data"
    form = f"data_file={data},data_file_raw=on"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, 1 << 20)
    qemu_io(path, f"write -q -P {OLD[0]} 0 1M")
    file, external = RecordingNode(path.read_bytes()), RecordingNode(data.read_bytes(), "data")
    lengths: list[tuple[int, bool]] = []
    size = 512 << 10

    def note(_number: int) -> int:
        """Note how long both are, and whether the data file's length is on stable storage."""
        stable = None in external.log[_last_cut(external) :]
        lengths.append((_size_in(file.data), stable))
        return 0

    async def main() -> None:
        async with opened_on(file, others=[external], data_file="data") as (_, backend):
            file.fails_at = note
            await backend.truncate(size)
            await backend.flush()
            file.fails_at = lambda _: 0
            assert external.size == size

    run(main())
    assert (size, True) in lengths
    assert (size, False) not in lengths


def _last_cut(external: RecordingNode) -> int:
    """Return where in the log a file was truncated last."""
    cuts = [at for at, change in enumerate(external.log) if change and change[1] is None]
    return cuts[-1] if cuts else len(external.log)

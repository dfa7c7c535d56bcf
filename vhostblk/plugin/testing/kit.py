# SPDX-License-Identifier: Apache-2.0
"""`DriverTests`: tests that every driver has to pass."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import re
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vhostblk.block import SECTOR
from vhostblk.errors import VhostblkError
from vhostblk.plugin import Driver, SyncDriver, register
from vhostblk.plugin.driver import has
from vhostblk.plugin.testing.disk import Complaints, Disk, opened
from vhostblk.plugin.testing.model import Model, Step, steps

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    #: Operations on a disk.
    Work = Callable[[Disk], Coroutine[Any, Any, Any]]

#: The maximum length that a test reads at once.
MOST = 4 << 20
CONCURRENT = 64


class DriverTests:
    """The base class of a driver's tests: set `driver`, and define how to open it."""

    #: The class to test.
    driver: ClassVar[type[Driver[Any] | SyncDriver[Any]]]
    #: Whether flushed data is there when the disk is opened again.
    persistent: ClassVar[bool] = True
    #: Whether the disk can be opened with `read-only=on`.
    can_be_read_only: ClassVar[bool] = True
    #: Options that must be refused, each with a regular expression for the message.
    refused: ClassVar[Sequence[tuple[dict[str, Any], str]]] = ()

    def make_options(self, directory: Path) -> dict[str, Any]:
        """Return the options for a disk, by their names in QMP.

        `directory` is empty, or was used before; the same directory has the same disk. The disk
        should have at most a few MiB.
        """
        return {}

    def expected(self, offset: int, length: int) -> bytes | None:
        """Return the expected content of a new disk in a range; None: unknown."""
        return None

    # Running.

    def _run(
        self,
        work: Work,
        path: Path,
        *,
        read_only: bool = False,
    ) -> None:
        """Open the disk, and run `work` on it; the log must contain no failures of the driver."""
        options = self.make_options(path)

        async def main() -> None:
            async with opened(self.driver, options, read_only=read_only) as disk:
                await work(disk)

        with _no_complaints():
            asyncio.run(main())

    # The tests.

    def test_the_size_is_in_whole_sectors_and_stays(self, tmp_path: Path) -> None:
        sizes = []

        async def work(disk: Disk) -> None:
            sizes.append(disk.size)
            await disk.read(0, min(disk.size, SECTOR))
            await disk.flush()  # checks the size again

        for _ in range(2):
            self._run(work, tmp_path)
        assert sizes[0] == sizes[1], "the size differs when the disk is opened again"
        assert sizes[0] > 0, "the disk is empty"

    def test_every_part_of_the_disk_can_be_read(self, tmp_path: Path) -> None:
        async def work(disk: Disk) -> None:
            for offset in _places(disk.size):
                data = await disk.read(offset, min(SECTOR, disk.size - offset))
                self._check_expected(offset, data)

        self._run(work, tmp_path)

    def test_a_long_read_is_what_short_ones_are(self, tmp_path: Path) -> None:
        async def work(disk: Disk) -> None:
            start = max(disk.size - MOST, 0) // 2 // SECTOR * SECTOR
            length = min(disk.size - start, MOST)
            whole = await disk.read(start, length)
            self._check_expected(start, whole)
            for step in (SECTOR * 7, 4096, 65536):
                for position in _spread(length, step):
                    part = await disk.read(start + position, min(step, length - position))
                    assert part == whole[position : position + len(part)], (
                        f"a read of {step} bytes at {start + position} returns other data"
                    )

        self._run(work, tmp_path)

    def test_requests_at_the_same_time_do_not_disturb_each_other(self, tmp_path: Path) -> None:
        async def work(disk: Disk) -> None:
            choose = random.Random(1)
            ranges = [_some_range(choose, disk.size) for _ in range(CONCURRENT)]
            alone = [await disk.read(*some) for some in ranges]
            together = await asyncio.gather(*(disk.read(*some) for some in ranges))
            assert together == alone, "concurrent reads return other data"
            if disk.writable:
                await self._write_together(disk)

        self._run(work, tmp_path)

    async def _write_together(self, disk: Disk) -> None:
        count = min(CONCURRENT, disk.size // SECTOR)
        length = min(disk.size // count // SECTOR * SECTOR, 8192)
        data = [bytes([number + 1]) * length for number in range(count)]
        await asyncio.gather(*(disk.write(n * length, data[n]) for n in range(count)))
        found = await asyncio.gather(*(disk.read(n * length, length) for n in range(count)))
        assert found == data, "concurrent writes are lost or mixed"

    def test_what_was_written_is_read(self, tmp_path: Path) -> None:
        """Any sequence of operations, compared with bytes in memory."""
        if not self._is_writable(tmp_path):
            pytest.skip("read-only driver")

        @settings(
            max_examples=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        @given(st.data())
        def check(data: st.DataObject) -> None:
            with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
                self._follow_model(Path(directory), data)

        check()

    def _follow_model(self, path: Path, data: st.DataObject) -> None:
        model: list[Model] = []

        async def work(disk: Disk) -> None:
            if not model:
                model.append(Model(await disk.read(0, disk.size)))
            todo: list[Step] = data.draw(steps(disk.size))
            for step in todo:
                await model[0].follow(disk, step)
            await disk.flush()

        for _ in range(2 if self.persistent else 1):
            self._run(work, path)

    def test_flushed_data_is_there_when_the_disk_is_opened_again(self, tmp_path: Path) -> None:
        if not self._is_writable(tmp_path) or not self.persistent:
            pytest.skip("data is not persistent")
        found: list[bytes] = []

        async def fill(disk: Disk) -> None:
            await disk.write(0, b"\xa7" * SECTOR)
            await disk.write(disk.size - SECTOR, b"\x7a" * SECTOR)
            await disk.flush()

        async def look(disk: Disk) -> None:
            found.append(await disk.read(0, SECTOR) + await disk.read(disk.size - SECTOR, SECTOR))

        self._run(fill, tmp_path)
        self._run(look, tmp_path)
        assert found == [b"\xa7" * SECTOR + b"\x7a" * SECTOR], "flushed data is lost"

    def test_zeroes_read_as_zeroes(self, tmp_path: Path) -> None:
        if not self._is_writable(tmp_path):
            pytest.skip("read-only driver")

        async def work(disk: Disk) -> None:
            length = min(disk.size, 1 << 20)
            await disk.write(0, b"\xff" * length)
            await disk.write_zeroes(SECTOR, length - 2 * SECTOR)
            expected = b"\xff" * SECTOR + bytes(length - 2 * SECTOR) + b"\xff" * SECTOR
            assert await disk.read(0, length) == expected, "write_zeroes() zeroed another range"

        self._run(work, tmp_path)

    def test_discards_leave_the_rest_alone(self, tmp_path: Path) -> None:
        if not self._is_writable(tmp_path):
            pytest.skip("read-only driver")

        async def work(disk: Disk) -> None:
            length = min(disk.size, 1 << 20)
            low, high = length // 4 // SECTOR * SECTOR, length // 2 // SECTOR * SECTOR
            await disk.write(0, b"\xff" * length)
            await disk.discard(low, high - low)
            data = await disk.read(0, length)
            assert data[:low] == b"\xff" * low, "a discard changed data before it"
            assert data[high:] == b"\xff" * (length - high), "a discard changed data behind it"

        self._run(work, tmp_path)

    def test_nothing_is_changed_past_the_end(self, tmp_path: Path) -> None:
        async def work(disk: Disk) -> None:
            for offset in (disk.size, disk.size - SECTOR, -SECTOR, 1 << 62):
                with pytest.raises(OSError, match="Input/output error"):
                    await disk.read(offset, 2 * SECTOR)
                if disk.writable:
                    with pytest.raises(OSError, match="Input/output error"):
                        await disk.write(offset, bytes(2 * SECTOR))
            await disk.read(disk.size - SECTOR, SECTOR)

        self._run(work, tmp_path)

    def test_a_read_only_disk_reads_the_same(self, tmp_path: Path) -> None:
        if not self.can_be_read_only:
            pytest.skip("can't be opened read-only")
        found: list[bytes] = []

        async def look(disk: Disk) -> None:
            found.append(await disk.read(0, min(disk.size, MOST)))
            await disk.flush()
            if disk.node.options.read_only:
                with pytest.raises(OSError, match="not permitted"):
                    await disk.write(0, bytes(SECTOR))

        if self.persistent:
            self._run(look, tmp_path)
        self._run(look, tmp_path, read_only=True)
        assert len(set(found)) == 1, "the data differs when the disk is opened read-only"

    def test_block_status_tells_the_truth(self, tmp_path: Path) -> None:
        async def look(disk: Disk) -> None:
            offset = 0
            while offset < min(disk.size, MOST):
                extent = await disk.block_status(offset, min(disk.size, MOST) - offset)
                if extent.zero:
                    data = await disk.read(offset, extent.length)
                    assert data == bytes(extent.length), (
                        f"no zeroes at {offset}, unlike block_status()"
                    )
                offset += extent.length

        async def work(disk: Disk) -> None:
            await look(disk)
            if disk.writable:
                await disk.write(disk.size // 2 // SECTOR * SECTOR, b"\x11" * SECTOR)
                await look(disk)

        self._run(work, tmp_path)

    def test_closing_releases_everything(self, tmp_path: Path) -> None:
        async def work(disk: Disk) -> None:
            await asyncio.gather(*(disk.read(0, SECTOR) for _ in range(4)))

        self._run(work, tmp_path)  # libraries may keep files open
        before = _resources()
        for _ in range(3):
            self._run(work, tmp_path)
        assert _resources() == before, "files or threads remain open"

    def test_bad_options_are_refused(self, tmp_path: Path) -> None:
        register(self.driver)
        before = _resources()
        for options, message in self.refused:
            merged = {**self.make_options(tmp_path), **options}

            async def main(merged: dict[str, Any] = merged) -> None:
                async with opened(self.driver, merged):
                    pass

            with pytest.raises(VhostblkError) as caught:
                asyncio.run(main())
            text = str(caught.value)
            assert re.search(message, text), f"{options}: {text}"
            assert "\n" not in text, "the message has more than one line"
        assert _resources() == before, "files or threads remain open"

    # Helpers.

    def _is_writable(self, path: Path) -> bool:
        writable: list[bool] = []

        async def look(disk: Disk) -> None:
            writable.append(disk.writable)

        self._run(look, path)
        assert not writable[0] or has(self.driver, "write")
        return writable[0]

    def _check_expected(self, offset: int, data: bytes) -> None:
        expected = self.expected(offset, len(data))
        assert expected is None or data == expected, f"{len(data)} bytes at {offset} are wrong"


@contextmanager
def _no_complaints() -> Iterator[None]:
    """Fail if the log has driver failures, or if coroutines were not awaited."""
    complaints, logger = Complaints(), logging.getLogger("vhostblk")
    logger.addHandler(complaints)
    try:
        yield
    finally:
        logger.removeHandler(complaints)
    gc.collect()
    assert not complaints.lines, "\n".join(complaints.lines)


def _resources() -> tuple[int, int]:
    """Return the numbers of open descriptors and threads."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208


def _places(size: int) -> list[int]:
    """Return offsets of sectors: at both ends, around powers of two, and some in between."""
    places = {0, size - SECTOR}
    for shift in range(9, size.bit_length()):
        places |= {(1 << shift) - SECTOR, 1 << shift}
    choose = random.Random(0)
    places |= {choose.randrange(size // SECTOR) * SECTOR for _ in range(50)}
    return sorted(place for place in places if 0 <= place <= size - SECTOR)


def _spread(length: int, step: int) -> range:
    """Return at most 50 offsets of parts of `step` bytes."""
    return range(0, length, max(length // 50 // step, 1) * step)


def _some_range(choose: random.Random, size: int) -> tuple[int, int]:
    offset = choose.randrange(size // SECTOR) * SECTOR
    return offset, min(choose.randrange(1, 64) * SECTOR, size - offset)

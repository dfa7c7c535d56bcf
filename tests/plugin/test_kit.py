# SPDX-License-Identifier: Apache-2.0
"""The kit for authors of drivers: it passes good ones, and each kind of bad one fails it."""

from __future__ import annotations

import inspect
import os
import threading
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from tests.plugin.support import Memory, SyncMemory
from vhostblk.plugin import Extent, Options, Size
from vhostblk.plugin.testing import DriverTests

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 256 << 10


class TestGood(DriverTests):
    """A driver without fault."""

    driver: ClassVar[Any] = Memory
    persistent = False
    refused = (({"size": 100}, "not a size in whole sectors"), ({"colour": 1}, "is unexpected"))

    def make_options(self, directory: Path) -> dict[str, Any]:
        return {"size": SIZE}

    def expected(self, offset: int, length: int) -> bytes:
        return bytes(length)


class TestGoodInThread(TestGood):
    """One without coroutines."""

    driver: ClassVar[Any] = SyncMemory


class FileOptions(Options, tag="test-file", frozen=True):
    """A file."""

    path: str
    size: Size = SIZE


class OffByOne(Memory):
    """Misses the last sector of each read but short ones."""

    async def read(self, offset: int, length: int) -> bytes:
        data = bytes(self.data[offset : offset + length])
        return data if length <= 512 else data[:-512] + b"\1" * 512


class Short(Memory):
    """Returns less at the end."""

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : min(offset + length, SIZE - 1)])


class Text(Memory):
    """Returns no bytes."""

    async def read(self, offset: int, length: int) -> Any:
        return "x" * length


class Growing(Memory):
    """Has another size each time."""

    calls = 0

    def size(self) -> int:
        type(self).calls += 1
        return SIZE + 512 * self.calls


class Losing(Memory):
    """Loses a write that crosses a boundary."""

    async def write(self, offset: int, data: bytes) -> None:
        if offset // 8192 == (offset + len(data) - 1) // 8192:
            await super().write(offset, data)


class Shared(SyncMemory):
    """Several threads use one buffer."""

    threads = 4
    offset = 0

    def read(self, offset: int, length: int) -> bytes:
        Shared.offset = offset
        threading.Event().wait(0.001)
        return bytes(self.data[Shared.offset : Shared.offset + length])[:length].ljust(length)


class WrongZeroes(Memory):
    """Zeroes a sector too few."""

    async def write_zeroes(self, offset: int, length: int) -> None:
        self.data[offset : offset + length - 512] = bytes(length - 512)


class WideDiscard(Memory):
    """Discards a sector too many."""

    async def discard(self, offset: int, length: int) -> None:
        self.data[offset : offset + length + 512] = bytes(length + 512)


class Lying(Memory):
    """Says that everything is zeroes."""

    async def block_status(self, offset: int, length: int) -> Extent:
        return Extent(length, zero=True)


class Leaky(Memory):
    """Leaves a file open."""

    async def open(self) -> None:
        await super().open()
        os.open("/dev/null", os.O_RDONLY)


class Forgetful(Memory):
    """Keeps nothing, where it should."""


class Careless(Memory):
    """Takes whatever options it gets."""


class Different(Memory):
    """Looks different when it is read-only."""

    async def read(self, offset: int, length: int) -> bytes:
        return (b"r" if self.read_only else b"\0") * length


class Raising(Memory):
    """Has a bug far in."""

    async def read(self, offset: int, length: int) -> bytes:
        if offset >= SIZE // 2:
            raise KeyError(offset)
        return await super().read(offset, length)


class Hanging(Memory):
    """Never answers for the last sector."""

    async def read(self, offset: int, length: int) -> bytes:
        if offset + length == SIZE:
            import asyncio

            await asyncio.get_running_loop().create_future()
        return await super().read(offset, length)


class Faulty(TestGood):
    """Not collected: its name doesn't begin with Test."""

    refused: ClassVar[Any] = (({"size": SIZE}, "too large"),)


@pytest.mark.parametrize(
    ("driver", "test", "message"),
    [
        (OffByOne, "test_a_long_read_is_what_short_ones_are", "are wrong"),
        (Short, "test_every_part_of_the_disk_can_be_read", "Input/output error"),
        (Text, "test_every_part_of_the_disk_can_be_read", "Input/output error"),
        (Growing, "test_the_size_is_in_whole_sectors_and_stays", "size"),
        (Losing, "test_what_was_written_is_read", "does not hold what was written"),
        (Losing, "test_zeroes_read_as_zeroes", "zeroed another range"),
        (Shared, "test_requests_at_the_same_time_do_not_disturb_each_other", "concurrent"),
        (WrongZeroes, "test_zeroes_read_as_zeroes", "zeroed another range"),
        (WideDiscard, "test_discards_leave_the_rest_alone", "a discard changed data behind"),
        (Lying, "test_block_status_tells_the_truth", "no zeroes at 0, unlike block_status"),
        (Leaky, "test_closing_releases_everything", "files or threads remain open"),
        (Careless, "test_bad_options_are_refused", "DID NOT RAISE"),
        (Different, "test_a_read_only_disk_reads_the_same", "opened read-only"),
        (Raising, "test_every_part_of_the_disk_can_be_read", "Input/output error"),
        (Hanging, "test_nothing_is_changed_past_the_end", "TimeoutError"),
        (Forgetful, "test_flushed_data_is_there_when_the_disk_is_opened_again", "data is lost"),
    ],
)
def test_faults_are_found(
    driver: Any, test: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhostblk.plugin.testing.disk.PATIENCE", 0.2 if driver is Hanging else 30)
    kit = Faulty()
    monkeypatch.setattr(Faulty, "driver", driver, raising=False)
    monkeypatch.setattr(Faulty, "persistent", driver in (Forgetful, Different))
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        getattr(kit, test)(tmp_path)
    assert message in repr(caught.value) + repr(caught.value.__context__)
    if driver is Leaky:
        for fd in set(os.listdir("/proc/self/fd")) - before:  # noqa: PTH208
            if os.path.exists(f"/proc/self/fd/{fd}"):  # noqa: PTH110
                os.close(int(fd))


def test_every_test_of_the_kit_is_failed_by_something() -> None:
    source = inspect.getsource(test_faults_are_found) + inspect.getsource(inspect.getmodule(Leaky))  # type: ignore[arg-type]
    for name in vars(DriverTests):
        if name.startswith("test_"):
            assert f'"{name}"' in source, name

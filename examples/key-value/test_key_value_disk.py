# SPDX-License-Identifier: Apache-2.0
"""The key-value disk against vhostblk's kit for drivers, and what is its own."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from key_value_disk import KeyValueDriver

from vhostblk.errors import VhostblkError
from vhostblk.plugin.testing import DriverTests, opened

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20
Refused = Sequence[tuple[dict[str, Any], str]]


class TestKeyValueDisk(DriverTests):
    driver = KeyValueDriver
    refused: ClassVar[Refused] = (
        ({"size": 2 * SIZE}, "The store has a 'size' of 1048576, not 2097152"),
        ({"block-size": 512}, "The store has a 'block-size' of 4096, not 512"),
        ({"filename": "/nowhere/at/all"}, "Could not open '/nowhere/at/all': unable to open"),
    )

    def make_options(self, directory: Path) -> dict[str, Any]:
        path = directory / "disk.db"
        if not path.exists():  # so that it can be opened read-only, too
            asyncio.run(create(path, {"size": SIZE}))
        return {"filename": str(path)}


class TestBigBlocks(TestKeyValueDisk):
    refused: ClassVar[Refused] = ()

    def make_options(self, directory: Path) -> dict[str, Any]:
        path = directory / "big.db"
        if not path.exists():
            asyncio.run(create(path, {"size": SIZE, "block-size": 65536}))
        return {"filename": str(path)}


async def create(path: Path, options: dict[str, Any]) -> None:
    async with opened(KeyValueDriver, {"filename": str(path), **options}):
        pass


def keys(path: Path) -> list[int]:
    with sqlite3.connect(path) as database:
        found = [key for (key,) in database.execute("SELECT key FROM block ORDER BY key")]
    database.close()
    return found


def test_only_blocks_with_data_have_keys(tmp_path: Path) -> None:
    path = tmp_path / "disk.db"

    async def main() -> None:
        async with opened(KeyValueDriver, {"filename": str(path), "size": SIZE}) as disk:
            await disk.write(0, b"x" * 40960)
            await disk.write_zeroes(4096, 4096)
            await disk.discard(12288, 8192)
            await disk.flush()
            await disk.write(SIZE - 4096, b"not flushed".ljust(4096))

    asyncio.run(main())
    assert keys(path) == [0, 2, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "A new store needs a 'size'"),
        ({"size": 100}, "'size' is not a multiple of the block size"),
        ({"size": SIZE, "block-size": 3000}, "'block-size' is not a power of two from 512 to 1M"),
    ],
)
def test_new_stores_need_sensible_sizes(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(VhostblkError) as caught:
        asyncio.run(create(tmp_path / "disk.db", options))
    assert str(caught.value) == message


def test_a_store_is_written_by_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "disk.db"

    async def main() -> None:
        async with opened(KeyValueDriver, {"filename": str(path), "size": SIZE}):
            async with opened(KeyValueDriver, {"filename": str(path)}):
                pass

    with pytest.raises(VhostblkError, match="database is locked"):
        asyncio.run(main())

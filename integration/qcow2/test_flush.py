# SPDX-License-Identifier: Apache-2.0
"""A flush of an image writes tables to the file, and puts the file on the disk."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.tools import check, content, opened, qemu_img, run, write
from tests.unsynced import directory_on_disk, unsynced_bytes
from vhostblk.engine.extents import Treatment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 8 << 20
CLUSTER = 64 << 10


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a directory on a disk."""
    with directory_on_disk(tmp_path) as directory:
        yield directory


def test_without_flushes_a_flush_still_writes_tables(tmp_path: Path) -> None:
    """With cache.no-flush, only a crash of the machine may lose data, not one of the daemon."""
    path, copy = tmp_path / "disk.qcow2", tmp_path / "copy.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    model = bytearray(SIZE)
    members: dict[str, Any] = {"cache": {"no-flush": True}}

    async def main() -> None:
        async with opened(path, **members) as (_, backend):
            extents = backend.extent_map()
            assert extents is None or extents.flush is Treatment.ASK
            for place in (0, CLUSTER, SIZE // 2):
                await write(backend, place, b"x" * 4096)
                model[place : place + 4096] = b"x" * 4096
            await backend.flush()
            shutil.copyfile(path, copy)

    run(main())
    check(copy)
    assert content(copy, tmp_path / "raw") == model


FORMS = ["cluster_size=64k", "extended_l2=on", "lazy_refcounts=on"]


@pytest.mark.parametrize("cache_on", [True, False])
@pytest.mark.parametrize("data_file", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_flushed_is_on_the_disk(
    disk: Path, form: str, data_file: bool, cache_on: bool
) -> None:
    """So are new and existing clusters; with the cache off, without a flush."""
    path, data = disk / "disk.qcow2", disk / "data"
    options = [form, *([f"data_file={data}"] if data_file else [])]

    async def main(zeroes: bool) -> None:
        async with opened(path) as (_, backend):
            backend.enable_write_cache = cache_on
            for place in (0, CLUSTER + 512, SIZE // 2, 0, 2048):
                if zeroes:
                    await backend.pwrite_zeroes(place, CLUSTER)
                else:
                    await write(backend, place, b"x" * 4096)
            if cache_on:
                await backend.flush()
            if data_file:
                assert unsynced_bytes(data) == 0
            assert unsynced_bytes(path) == 0

    for zeroes in (False, True):
        qemu_img("create", "-q", "-f", "qcow2", "-o", ",".join(options), path, SIZE)
        os.sync()
        run(main(zeroes))

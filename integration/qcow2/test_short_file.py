# SPDX-License-Identifier: Apache-2.0
"""Images that refer to places past the end of their file, as a copy without its last part does.

There they have zeroes, and what is written then stays, as in QEMU.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from integration.qcow2.tools import check, opened, qemu_img, qemu_io, read, run, write
from vhostblk.block.drivers.qcow2.node import Qcow2Node

if TYPE_CHECKING:
    from pathlib import Path

M = 1 << 20
#: What each image gets: a new cluster, which is to be past the file's end.
NEW = 2 * M
#: How many clusters of a short image are past the end of its file.
PAST_END = 64 * 16 + 5 - 32 - 16


def _short_image(tmp_path: Path) -> Path:
    """Make an image that has all its clusters but those of `NEW`, and of its file 1 MiB."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, 64 * M)
    qemu_io(path, f"discard {NEW} 2M", options=f"driver=qcow2,discard=unmap,file.filename={path}")
    os.truncate(path, M)
    return path


def test_data_past_the_end_stays(tmp_path: Path) -> None:
    path = _short_image(tmp_path)

    async def main() -> None:
        async with opened(path) as (_, backend):
            await write(backend, NEW, b"a" * 4096)
            await write(backend, 40 * M, b"b" * 65536)
            await write(backend, 40 * M, b"c" * 4096)
            await backend.flush()

    run(main())
    qemu_io(path, "read -P 0x61 2M 4k", "read -P 0x63 40M 4k", "read -P 0x62 41947136 60k")


def test_a_place_past_the_end_that_was_written_is_not_taken_for_zeroes(tmp_path: Path) -> None:
    path = _short_image(tmp_path)
    file = {"driver": "file", "filename": str(path), "discard": "ignore"}

    async def main() -> None:
        async with opened(path, discard="unmap", file=file) as (_, backend):
            await write(backend, 40 * M, b"b" * 65536)
            await backend.edge.pdiscard(40 * M, 65536)
            await backend.flush()
            for cluster in range(NEW, NEW + 2 * M, 65536):
                await write(backend, cluster, b"a" * 4096)
            await write(backend, 40 * M, b"a" * 4096)
            assert await read(backend, 40 * M, 65536) == b"a" * 4096 + bytes(61440)

    run(main())


def test_a_table_past_the_end_stays(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, 64 * M)
    qemu_io(path, "write -q 0 64k")
    data = bytearray(path.read_bytes())
    l1 = int.from_bytes(data[40:48], "big")
    data[l1 : l1 + 8] = (1 << 63 | 16 * M).to_bytes(8, "big")
    path.write_bytes(data)

    async def main() -> None:
        async with opened(path) as (_, backend):
            await write(backend, 40 * M, b"b" * 65536)
            await backend.flush()

    run(main())
    qemu_io(path, "read -P 0x62 40M 64k")


def test_a_repair_keeps_clusters_past_the_end(tmp_path: Path) -> None:
    """They are reported, as by QEMU, and nothing else is allocated there."""
    path = _short_image(tmp_path)
    with path.open("r+b") as file:
        file.seek(79)
        file.write(b"\1")  # dirty

    async def main() -> None:
        async with opened(path) as (node, backend):
            assert isinstance(node, Qcow2Node)
            found = await node.check_image(repair=False)
            assert (found.corruptions, found.leaks) == (PAST_END, 0)
            await backend.truncate(70 * M)
            await write(backend, 64 * M, b"a" * (6 * M))
            for place in range(M, 64 * M, 4 * M):
                assert await read(backend, place, 4096) == bytes(4096), place
            await write(backend, 40 * M, b"b" * 65536)

    run(main())
    check(path)
    qemu_io(path, "read -P 0x61 64M 6M", "read -P 0x62 40M 64k", "read -P 0 41M 1M")

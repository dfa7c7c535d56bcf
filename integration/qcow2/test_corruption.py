# SPDX-License-Identifier: Apache-2.0
"""Images that contradict themselves: marked as corrupt, and not written to any more."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.record import RecordingNode, flushed, opened_on
from integration.qcow2.tools import opened, qemu_img, qemu_io, read, run, write
from tests.block.support import fails_with
from vhostblk.block.drivers.qcow2.layout import COPIED, HEADER, OFFSET_MASK, OVERWRITE, Incompatible
from vhostblk.block.drivers.qcow2.node import Qcow2Node
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.permissions import Perm

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20
#: Of an image that QEMU makes with clusters of 64 KiB: the L1 table, and the first L2 table.
L1, L2 = 0x30000, 0x40000

pytestmark = pytest.mark.filterwarnings("ignore")


def _image(path: Path, place: int, word: int) -> None:
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    qemu_io(path, "write -q -P 1 0 128k")
    data = bytearray(path.read_bytes())
    data[place : place + 8] = word.to_bytes(8, "big")
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("place", "word", "text"),
    [
        (L1, 1 << 63 | L2 | 512, "L2 table offset 0x40200 unaligned (L1 index: 0)"),
        (L2, 1 << 63 | 0x50200, "Cluster allocation offset 0x50200 unaligned"),
        (L2, 1 << 63 | L1, "overlaps with active L1 table"),
        (L2, 1 << 63 | L2, "overlaps with active L2 table"),
    ],
)
def test_corrupt_images_are_told_and_left_alone(
    tmp_path: Path, caplog: Any, place: int, word: int, text: str
) -> None:
    path = tmp_path / "disk.qcow2"
    _image(path, place, word)

    async def main() -> None:
        async with opened(path) as (_, backend):
            with fails_with(errno.EIO):
                await write(backend, 0, b"x" * 512)
            with fails_with(errno.EIO):
                await write(backend, 65536, b"x" * 512)
            with fails_with(errno.EIO):
                await backend.flush()

    run(main())
    assert text in caplog.text

    async def again() -> None:
        with pytest.raises(BlockError, match="Image is corrupt; cannot be opened read/write"):
            async with opened(path):
                pass
        async with opened(path, Perm.CONSISTENT_READ) as (_, backend):
            assert await read(backend, 65536, 1) == (b"\1" if place == L2 else b"\0")

    if place == L2:
        run(again())


def test_the_mark_of_a_corrupt_image_is_on_stable_storage(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    _image(path, L2, 1 << 63 | L1)
    file = RecordingNode(path.read_bytes())
    features = HEADER.offsets["incompatible_features"]

    async def main() -> None:
        async with opened_on(file) as (node, backend):
            with fails_with(errno.EIO):
                await write(backend, 0, b"x" * 512)
            await node.settle()
            stable = flushed(file.original, file.log)
            assert int.from_bytes(stable[features : features + 8], "big") & Incompatible.CORRUPT

    run(main())


def test_nothing_is_published_any_more_once_an_image_is_corrupt(tmp_path: Path) -> None:
    """Whoever goes by the table doesn't ask whether the image may still be written."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, 8 << 20)
    qemu_io(path, "write -q 0 4k", "write -q 4M 4k")
    data = bytearray(path.read_bytes())
    l1 = int.from_bytes(data[40:48], "big")
    data[l1 + 16 + 6] |= 2  # the table of 4M is not at a cluster's border
    path.write_bytes(data)

    async def main() -> None:
        async with opened(path) as (node, backend):
            await write(backend, 1 << 20, b"x" * 4096)  # looks for free clusters
            image = node._image  # type: ignore[attr-defined]
            assert image.publisher.entries.any()
            burst = (write(backend, at, b"x" * 4096) for at in (64 << 10, 4 << 20))
            _, failure = await asyncio.gather(*burst, return_exceptions=True)
            assert isinstance(failure, OSError)
            assert image.unusable
            assert not image.publisher.entries.any()

    run(main())


def test_data_past_the_end_of_the_file_is_not_published(tmp_path: Path) -> None:
    """The engine would make the file longer, and the driver would not know."""
    path = tmp_path / "disk.qcow2"
    _image(path, L2 + 8, COPIED | 1 << 30)

    async def main() -> None:
        async with opened(path) as (node, backend):
            assert isinstance(node, Qcow2Node)
            assert await read(backend, 0, 512) == b"\1" * 512
            entries = node._image.publisher.entries[:2].tolist()
            assert entries[0] & OVERWRITE
            assert entries[1] == 0

    run(main())


def test_a_backing_file_that_is_the_image_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    form = ["-b", "disk.qcow2", "-F", "qcow2"]
    qemu_img("create", "-q", "-u", "-f", "qcow2", *form, path, SIZE)

    async def main() -> None:
        with pytest.raises(BlockError, match="the backing chain is too long"):
            async with opened(path, Perm.CONSISTENT_READ):
                pass

    run(main())


def test_dirty_images_are_repaired(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    _image(path, 72, 1)  # dirty
    data = bytearray(path.read_bytes())
    data[0x20000:0x20010] = bytes(16)  # no refcounts
    path.write_bytes(data)

    async def main() -> None:
        async with opened(path) as (_, backend):
            assert await read(backend, 0, 1) == b"\1"

    run(main())
    assert "No errors" in qemu_img("check", path)


def test_tables_of_snapshots_are_checked_if_wanted(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    qemu_io(path, "write -q -P 1 0 128k")
    qemu_img("snapshot", "-c", "s", path)
    qemu_io(path, "write -q -P 1 64k 64k")  # the disk has an L2 table of its own
    data = bytearray(path.read_bytes())
    table = int.from_bytes(data[L1 : L1 + 8], "big") & ~(1 << 63)
    data[table : table + 8] = (1 << 63 | L2).to_bytes(8, "big")
    path.write_bytes(data)

    async def main() -> None:
        async with opened(path, overlap_check="all") as (_, backend):
            with fails_with(errno.EIO):
                await write(backend, 0, b"x" * 512)

    run(main())
    assert "overlaps with inactive L2 table" in caplog.text
    assert path.read_bytes()[L2 : L2 + 8] == data[L2 : L2 + 8]


#: The cluster numbers of structures in an image made by QEMU.
STRUCTURES = {
    "qcow2_header": 0,
    "refcount table": 1,
    "refcount block": 2,
    "active L1 table": 3,
    "active L2 table": 4,
}


@pytest.mark.parametrize("what", STRUCTURES)
@pytest.mark.parametrize("kind", ["data", "table"])
def test_metadata_that_counts_as_free_is_not_taken(
    tmp_path: Path, caplog: Any, what: str, kind: str
) -> None:
    path, size = tmp_path / "disk.qcow2", 1 << 30
    qemu_img("create", "-q", "-f", "qcow2", path, size)
    qemu_io(path, "write -q -P 1 0 128k")
    data = bytearray(path.read_bytes())
    cluster = STRUCTURES[what]
    data[0x20000 + 2 * cluster : 0x20002 + 2 * cluster] = bytes(2)
    path.write_bytes(data)

    async def main() -> None:
        async with opened(path) as (_, backend):
            with fails_with(errno.EIO):
                await write(backend, 196608 if kind == "data" else size - 65536, b"x" * 4096)
            with fails_with(errno.EIO):
                await write(backend, 0, b"x" * 4096)

    run(main())
    assert f"Preventing invalid write on metadata (overlaps with {what})" in caplog.text
    after = path.read_bytes()
    assert after[79] & 2  # marked as corrupt
    assert after[80 : len(data)] == data[80:]


@pytest.mark.parametrize("before", [1, 2])
def test_a_run_with_metadata_in_it_is_not_taken(tmp_path: Path, caplog: Any, before: int) -> None:
    """Its first clusters are really free."""
    path = tmp_path / "disk.qcow2"
    _image(path, L2, 0)

    async def main() -> None:
        async with opened(path) as (node, _):
            image = node._image  # type: ignore[attr-defined]
            table = (int(image.tables.l1[0]) & OFFSET_MASK) >> image.geometry.cluster_bits
            image.overlap.check_allocation(table + 1, 8)
            image.overlap.metadata_added(table + 20, 1, "active_l2")
            image.overlap.check_allocation(table + 20 - before, before)
            with fails_with(errno.EIO):
                image.overlap.check_allocation(table + 20 - before, before + 1)

    run(main())
    assert "overlaps with active L2 table" in caplog.text


def test_the_header_is_not_taken_though_nothing_is_checked(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "disk.qcow2"
    _image(path, 0x20000, 0x0000_0001_0001_0001)  # refcounts

    async def main() -> None:
        async with opened(path, overlap_check="none") as (_, backend):
            with fails_with(errno.EIO):
                await write(backend, 196608, b"x" * 4096)

    run(main())
    assert "Preventing invalid allocation of clusters at offset 0" in caplog.text
    assert path.read_bytes()[:4] == b"QFI\xfb"


def test_data_that_lies_where_a_table_has_come_is_not_written(tmp_path: Path, caplog: Any) -> None:
    """The table was made after the image was opened; the entry is then not published."""
    path, size = tmp_path / "disk.qcow2", 1 << 30
    qemu_img("create", "-q", "-f", "qcow2", path, size)
    qemu_io(path, "write -q -P 1 0 64k")
    data = bytearray(path.read_bytes())
    end = len(data)
    assert end % 65536 == 0
    data[L2 + 8 : L2 + 16] = (1 << 63 | end).to_bytes(8, "big")
    path.write_bytes(data)

    async def main() -> None:
        async with opened(path) as (node, backend):
            await write(backend, 0, b"x" * 512)
            await write(backend, size - 65536, b"x" * 512)
            image = node._image  # type: ignore[attr-defined]
            assert int(image.tables.l1[1]) & ~(1 << 63) == end
            with fails_with(errno.EIO):
                await write(backend, 65536, b"y" * 65536)

    run(main())
    assert "overlaps with active L2 table" in caplog.text

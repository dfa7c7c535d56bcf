# SPDX-License-Identifier: Apache-2.0
"""Images in which two structures overlap: neither is written to.

The first change of a table that overlaps another structure fails, and marks the image as corrupt,
with QEMU's message. The rest of the file is unchanged.
"""

from __future__ import annotations

import errno
import shutil
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.tools import content, opened, qemu_img, qemu_io, qemu_io_status, run, write
from tests.block.support import change_bitmap
from vhostblk.block.bitmaps.node_bitmaps import RemoveBitmap
from vhostblk.block.drivers.qcow2 import header
from vhostblk.block.drivers.qcow2.node import Qcow2Node
from vhostblk.block.errors import BlockError
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.iovec import IoVec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from vhostblk.block.graph.backend import BlockBackend

    Use = Callable[[Qcow2Node, BlockBackend], Awaitable[object]]

pytestmark = pytest.mark.filterwarnings("ignore")

CLUSTER = 4096
#: Bytes that an L2 table maps, and clusters that a refcount block covers.
SPAN, COUNTED = CLUSTER // 8 * CLUSTER, CLUSTER // 2
SIZE = 4 * SPAN
COPIED = 1 << 63


class Layout:
    """The offsets of an image's structures; some names are those in messages."""

    def __init__(self, data: bytes) -> None:
        parsed = header.parse(data[:CLUSTER])
        assert parsed.bitmaps is not None

        def word(offset: int) -> int:
            return int(struct.unpack_from(">Q", data, offset)[0]) & ((1 << 56) - 512)

        self.places = {
            "active L1 table": parsed.l1_offset,
            "active L2 table": word(parsed.l1_offset),
            "data": word(word(parsed.l1_offset)),
            "refcount table": parsed.reftable_offset,
            "refcount block": word(parsed.reftable_offset),
            "snapshot table": parsed.snapshots_offset,
            "inactive L1 table": word(parsed.snapshots_offset),
            "inactive L2 table": word(word(parsed.snapshots_offset)),
            "bitmap directory": parsed.bitmaps.offset,
            "bitmap table": word(parsed.bitmaps.offset),
        }


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return an image with one of each structure; the disk and the snapshot share no L2 table."""
    path = tmp_path_factory.mktemp("places") / "good.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER}", path, SIZE)
    qemu_io(path, "write -q -P 1 0 8k")
    qemu_img("snapshot", "-c", "s", path)
    qemu_io(path, "write -q -P 2 4k 8k")
    qemu_img("bitmap", "--add", path, "b")
    qemu_io(path, "write -q -P 3 4k 4k")
    return path.read_bytes()


async def _write_far(_node: Qcow2Node, backend: BlockBackend) -> None:
    """Read a part that the second L2 table maps, to load it, and write several clusters."""
    await backend.block_status(SPAN + (1 << 20), 512)
    await write(backend, SPAN + (1 << 20), b"x" * (3 * CLUSTER + 512))


async def _write_near(_node: Qcow2Node, backend: BlockBackend) -> None:
    await write(backend, 1 << 20, b"x" * 512)


async def _write_late(node: Qcow2Node, backend: BlockBackend) -> None:
    """Write as if all clusters of the first refcount block were in use."""
    node._image.allocator.hint = COUNTED
    await write(backend, 1 << 20, b"x" * 512)


async def _zero(_node: Qcow2Node, backend: BlockBackend) -> None:
    await backend.pwrite_zeroes(SPAN, CLUSTER)


async def _discard_far(_node: Qcow2Node, backend: BlockBackend) -> None:
    await backend.pdiscard(SPAN, CLUSTER)


async def _discard(_node: Qcow2Node, backend: BlockBackend) -> None:
    await backend.pdiscard(1 << 20, CLUSTER)
    await backend.flush()


async def _compress(_node: Qcow2Node, backend: BlockBackend) -> None:
    iov = IoVec.from_buffers([bytearray(CLUSTER)])
    await backend.pwritev(SPAN, iov, WriteFlags.WRITE_COMPRESSED)


async def _create_snapshot(node: Qcow2Node, _backend: BlockBackend) -> None:
    await node.create_snapshot("t")


async def _apply_snapshot(node: Qcow2Node, _backend: BlockBackend) -> None:
    node.bitmaps.clear()
    await node.apply_snapshot(name="s")


async def _delete_snapshot(node: Qcow2Node, _backend: BlockBackend) -> None:
    await node.delete_snapshot(name="s")


async def _remove_bitmap(node: Qcow2Node, backend: BlockBackend) -> None:
    await change_bitmap(RemoveBitmap, node._graph, "disk", "b")


async def _shrink(_node: Qcow2Node, backend: BlockBackend) -> None:
    await backend.truncate(SPAN)


@dataclass(frozen=True)
class Case:
    """A fault in an image, and how it is found."""

    #: Words to write: a structure, the offset in it, the structure to refer to, and flags.
    words: tuple[tuple[str, int, str, int], ...]
    use: Use
    #: The structure that the message names.
    hit: str
    #: Commands by which QEMU finds the fault; empty: QEMU doesn't find it.
    by_qemu: tuple[str, ...] = ()
    #: It is found on opening.
    at_once: bool = False
    #: It is found after the header has changed to other tables.
    late: bool = False
    options: tuple[tuple[str, Any], ...] = ()


_FAR = (f"write -q {SPAN + (1 << 20)} 512", "flush")
_STRUCTURES = (
    "active L1 table",
    "refcount table",
    "refcount block",
    "snapshot table",
    "inactive L1 table",
)


def _l1(name: str, flags: int = COPIED) -> tuple[tuple[str, int, str, int], ...]:
    """Make the second L1 entry refer to a structure."""
    return (("active L1 table", 8, name, flags),)


CASES = {
    **{f"l2 at {each}": Case(_l1(each), _write_far, each, _FAR) for each in _STRUCTURES},
    "l2 at refcount block": Case(_l1("refcount block"), _write_far, "refcount block"),
    **{f"shared l2 at {each}": Case(_l1(each, 0), _write_far, each) for each in _STRUCTURES[1:]},
    "shared l2 at l1": Case(_l1("active L1 table", 0), _write_far, "active L2 table"),
    "l2 at bitmap directory": Case(
        _l1("bitmap directory"), _write_far, "active L2 table", ("read 0 512",), at_once=True
    ),
    "l2 twice": Case(_l1("active L2 table"), _write_far, "active L2 table"),
    "l2 of a snapshot": Case(
        _l1("inactive L2 table"),
        _write_far,
        "inactive L2 table",
        options=(("overlap_check", "all"),),
    ),
    "zeroes": Case(_l1("refcount table"), _zero, "refcount table"),
    "discard": Case(_l1("snapshot table"), _discard_far, "snapshot table"),
    "compressed": Case(_l1("refcount table"), _compress, "refcount table"),
    "shrink": Case(_l1("snapshot table"), _shrink, "snapshot table", late=True),
    "snapshot of l2 at refcount table": Case(
        _l1("refcount table"), _create_snapshot, "refcount table"
    ),
    "snapshot with l2 twice": Case(_l1("active L2 table"), _create_snapshot, "active L2 table"),
    "applied l2 at refcount block": Case(
        (("inactive L1 table", 0, "refcount block", 0),), _apply_snapshot, "refcount block"
    ),
    "deleted l2 at refcount table": Case(
        (("inactive L1 table", 0, "refcount table", 0),),
        _delete_snapshot,
        "refcount table",
        late=True,
    ),
    **{
        f"block at {each}": Case((("refcount table", 8, each, 0),), _write_late, each)
        for each in ("active L1 table", "refcount table", "snapshot table")
    },
    "block at l2": Case(
        (("refcount table", 8, "active L2 table", 0),), _write_late, "refcount block"
    ),
    "block twice": Case(
        (("refcount table", 8, "refcount block", 0),), _write_late, "refcount block"
    ),
    "new block, l2 at refcount table": Case(_l1("refcount table"), _write_late, "active L2 table"),
    "data at l1": Case(
        (("active L2 table", 1 << 11, "active L1 table", COPIED),), _write_near, "active L1 table"
    ),
    "freed data at l1": Case(
        (("active L2 table", 1 << 11, "active L1 table", COPIED),),
        _discard,
        "active L1 table",
        late=True,
    ),
    "bitmap's data at refcount block": Case(
        (("bitmap table", 0, "refcount block", 0),), _remove_bitmap, "refcount block", late=True
    ),
    "l1 at refcount table": Case(
        (("header", 40, "refcount table", 0),), _write_far, "refcount table"
    ),
}


def _spoilt(good: bytes, case: Case) -> bytes:
    data, places = bytearray(good), {**Layout(good).places, "header": 0}
    for structure, offset, target, flags in case.words:
        struct.pack_into(">Q", data, places[structure] + offset, places[target] | flags)
    return bytes(data)


@pytest.mark.parametrize("name", CASES)
def test_what_an_image_has_twice_is_not_written_to(
    tmp_path: Path, good: bytes, caplog: Any, name: str
) -> None:
    case, path, other = CASES[name], tmp_path / "disk.qcow2", tmp_path / "other.qcow2"
    bad = _spoilt(good, case)
    path.write_bytes(bad)
    other.write_bytes(bad)

    async def main() -> None:
        async with opened(path, discard="unmap", **dict(case.options)) as (node, backend):
            assert isinstance(node, Qcow2Node)
            with pytest.raises((OSError, BlockError), match=r"Input/output error|corrupt"):
                await case.use(node, backend)
            for action in (write(backend, 0, b"x"), backend.flush()):
                with pytest.raises(OSError, match="corrupt") as caught:
                    await action
                assert caught.value.errno == errno.EIO

    if case.at_once:
        with pytest.raises(BlockError, match="Can't update bitmap directory: Input/output error"):
            run(main())
    else:
        run(main())
    text = f"Preventing invalid write on metadata (overlaps with {case.hit})"
    assert text in caplog.text
    _check_unchanged(path, bad, case)
    if case.by_qemu:
        status, said = qemu_io_status(other, *case.by_qemu)
        assert status
        assert text in said


def _check_unchanged(path: Path, before: bytes, case: Case) -> None:
    """Check that the file is marked corrupt, and otherwise unchanged."""
    after = bytearray(path.read_bytes()[: len(before)])
    assert after[79] & 2
    places = Layout(before).places
    # Bitmaps are marked as in use when an image is opened.
    flags = places["bitmap directory"] + 12
    if not case.at_once:
        after[flags : flags + 4] = before[flags : flags + 4]
    after[79] = before[79]
    if case.late:  # clusters allocated for other tables have refcounts
        block = places["refcount block"]
        after[block : block + CLUSTER] = before[block : block + CLUSTER]
        after[:CLUSTER] = before[:CLUSTER]
        for structure in ("active L1 table", "active L2 table"):
            start = places[structure]
            after[start : start + CLUSTER] = before[start : start + CLUSTER]
    assert bytes(after) == before


def test_a_refcount_block_that_is_not_aligned_is_left_alone(
    tmp_path: Path, good: bytes, caplog: Any
) -> None:
    """Refcounts read from there would be wrong: clusters in use would count as free."""
    path, place = tmp_path / "disk.qcow2", Layout(good).places["refcount block"] + 512
    path.write_bytes(good)
    qemu_io(path, "write -q -P 9 0 2M")
    bad = bytearray(path.read_bytes())
    struct.pack_into(">Q", bad, Layout(good).places["refcount table"], place)
    path.write_bytes(bad)
    other = tmp_path / "other.qcow2"
    shutil.copy(path, other)

    async def main() -> None:
        async with opened(path) as (_, backend):
            with pytest.raises(OSError, match="Input/output error"):
                await write(backend, SPAN, b"x" * 512)
            with pytest.raises(OSError, match="corrupt"):
                await backend.flush()

    run(main())
    text = f"Refblock offset {place:#x} unaligned (reftable index: 0)"
    assert text in caplog.text
    _check_unchanged(path, bytes(bad), CASES["l2 twice"])
    status, said = qemu_io_status(other, f"write -q {SPAN} 512")
    assert status
    assert text in said


@pytest.mark.parametrize("where", ["unaligned", "beyond", "active L2 table", "twice"])
def test_a_repair_puts_refcount_blocks_elsewhere(tmp_path: Path, good: bytes, where: str) -> None:
    """A block that overlaps another structure is not written to."""
    path, places = tmp_path / "disk.qcow2", Layout(good).places
    before = content(_written(path, good), tmp_path / "raw")
    bad, block = bytearray(good), places["refcount block"]
    target = {
        "unaligned": block + 512,
        "beyond": 1 << 40,
        "active L2 table": places["active L2 table"],
        "twice": block,
    }[where]
    index = 1 if where == "twice" else 0
    struct.pack_into(">Q", bad, places["refcount table"] + 8 * index, target)
    _written(path, bytes(bad))

    async def main() -> tuple[int, int]:
        async with opened(path) as (node, _):
            assert isinstance(node, Qcow2Node)
            first = await node.check_image(repair=True)
            assert first.corruptions == first.corruptions_fixed > 0
            second = await node.check_image(repair=True)
            return second.corruptions, second.leaks

    assert run(main()) == (0, 0)
    assert "No errors" in qemu_img("check", path)
    assert content(path, tmp_path / "raw") == before


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path

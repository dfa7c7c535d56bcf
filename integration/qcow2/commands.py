# SPDX-License-Identifier: Apache-2.0
"""Commands that change an image's structures, on small images, and views of the results."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from integration.qcow2.record import RecordingNode, opened_on
from integration.qcow2.tools import qemu_img, qemu_io, read, write
from tests.block.support import change_bitmap
from vhostblk.block.bitmaps.node_bitmaps import AddBitmap, RemoveBitmap
from vhostblk.block.drivers.qcow2 import allocator
from vhostblk.block.drivers.qcow2.gather import gather_references
from vhostblk.block.drivers.qcow2.header import parse
from vhostblk.block.drivers.qcow2.layout import COMPRESSED, COPIED, OFFSET_MASK
from vhostblk.block.drivers.qcow2.pace import Pace
from vhostblk.block.drivers.qcow2.snapshots import parse_table
from vhostblk.block.drivers.qcow2.transfer import read_array
from vhostblk.schema.common import PreallocMode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.node import Qcow2Node
    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.block.graph.graph import Graph

#: With clusters of 512 bytes a table has 64 entries, so tables are many and small.
SIZE = 120 << 10
#: The file grows by this much in advance; little, as its states are copied many times.
GROWTH = 16 << 10


@dataclass(frozen=True)
class Command:
    """A command, and the image on which it runs."""

    name: str
    run: Callable[[Qcow2Node, BlockBackend], Awaitable[object]]
    form: str = "cluster_size=512"
    #: What QEMU prepares: commands of qemu-io, then snapshots and bitmaps.
    before: tuple[str, ...] = ("write -q -P 1 10k 30k", "write -q -P 2 110k 5k")
    snapshots: tuple[str, ...] = ()
    bitmaps: tuple[str, ...] = ()
    size: int = SIZE
    #: Length of the backing file; 0: there is none.
    backing: int = 0
    #: Range of data that the command writes, which may be written in part: offset, length.
    writes: tuple[int, int] = (0, 0)
    #: "Copied" bits are set in the snapshots' L2 tables, where they have no meaning.
    copied: bool = False
    #: Make later writes need another refcount block.
    needs_block: bool = False


def _resize(size: int, mode: PreallocMode = PreallocMode.OFF) -> Any:
    async def run(_node: Qcow2Node, backend: BlockBackend) -> None:
        await backend.truncate(size, mode)

    return run


async def _write_and_grow(_node: Qcow2Node, backend: BlockBackend) -> None:
    """Grow the disk while tables in memory are newer than in the file."""
    await write(backend, 60 << 10, b"w" * (12 << 10))
    await backend.truncate(_LONGER)


async def _create_snapshot(node: Qcow2Node, _backend: BlockBackend) -> None:
    await node.create_snapshot("new")


async def _apply_snapshot(node: Qcow2Node, _backend: BlockBackend) -> None:
    await node.apply_snapshot(name="s")


async def _delete_snapshot(node: Qcow2Node, _backend: BlockBackend) -> None:
    await node.delete_snapshot(name="s")


async def _add_bitmap(node: Qcow2Node, _backend: BlockBackend) -> None:
    """Add a persistent bitmap; it is stored when the image gives up writing."""
    await change_bitmap(AddBitmap, _graph(node), "disk", "added", 4096, persistent=True)
    await node.give_up_writing()
    await node.resume_writing()


async def _remove_bitmap(node: Qcow2Node, _backend: BlockBackend) -> None:
    await change_bitmap(RemoveBitmap, _graph(node), "disk", "b")


async def _write_a_lot(node: Qcow2Node, backend: BlockBackend) -> None:
    """Write beyond the refcount table's range: allocation starts near its end."""
    image = node._image
    before = image.header.reftable_offset
    image.allocator.hint = (len(image.refcounts.table) << image.geometry.refblock_bits) - 4
    await write(backend, 100 << 10, b"w" * (4 << 10))
    assert image.header.reftable_offset != before


async def _rename_backing(node: Qcow2Node, _backend: BlockBackend) -> None:
    await node.change_backing_file("/" + "n" * 80, "raw")


def _graph(node: Qcow2Node) -> Graph:
    return node._graph


_LONGER = SIZE + (60 << 10) + 1536
_EXTENDED = "extended_l2=on,cluster_size=16k"

COMMANDS = [
    Command("grow", _resize(_LONGER)),
    Command("write and grow", _write_and_grow, writes=(60 << 10, 12 << 10)),
    Command("grow over a longer file", _resize(_LONGER), backing=240 << 10),
    Command("grow over a file that ends inside", _resize(_LONGER), backing=SIZE + 5000),
    Command("grow a part of a cluster", _resize(SIZE), size=SIZE - 1536, backing=240 << 10,
            form="cluster_size=4k"),
    Command("grow version 2", _resize(SIZE), size=SIZE - 1536, backing=240 << 10,
            form="compat=0.10,cluster_size=4k"),
    Command("grow subclusters", _resize(_LONGER), size=SIZE - 1536, backing=240 << 10,
            form=_EXTENDED),
    Command("preallocate", _resize(SIZE + (30 << 10), PreallocMode.METADATA), backing=240 << 10),
    Command("preallocate subclusters", _resize(_LONGER, PreallocMode.METADATA),
            size=SIZE - 1536, backing=240 << 10, form=_EXTENDED),
    Command("shrink", _resize(15 << 10)),
    Command("shrink over a longer file", _resize((20 << 10) - 512), backing=240 << 10),
    Command("shrink with a snapshot", _resize(15 << 10), snapshots=("s",)),
    Command("create a snapshot", _create_snapshot),
    Command("create another snapshot", _create_snapshot, snapshots=("s",)),
    Command("apply a snapshot", _apply_snapshot, snapshots=("s",)),
    Command("apply a snapshot with bits", _apply_snapshot, snapshots=("s",), copied=True),
    Command("delete a snapshot", _delete_snapshot, snapshots=("s", "t")),
    Command("delete the last snapshot", _delete_snapshot, snapshots=("s",)),
    Command("add a bitmap", _add_bitmap, bitmaps=("b",)),
    Command("remove a bitmap", _remove_bitmap, bitmaps=("b", "c")),
    Command("remove the last bitmap", _remove_bitmap, bitmaps=("b",)),
    Command("move the refcount table", _write_a_lot, form="cluster_size=512,refcount_bits=64",
            writes=(100 << 10, 4 << 10), needs_block=True),
    Command("rename the backing file", _rename_backing, backing=SIZE),
]  # fmt: skip


def prepare(command: Command, directory: Path) -> bytes:
    """Make the image; return its file."""
    path = directory / "prepared.qcow2"
    arguments: list[object] = ["create", "-q", "-f", "qcow2", "-o", command.form]
    if command.backing:
        base = directory / "base.raw"
        base.write_bytes(backing_data(command))
        arguments += ["-b", base, "-F", "raw"]
    qemu_img(*arguments, path, command.size)
    for name in command.bitmaps:
        qemu_img("bitmap", "--add", "-g", "4k", path, name)
    qemu_io(path, *command.before)
    for name in command.snapshots:
        qemu_img("snapshot", "-c", name, path)
        qemu_io(path, "write -q -P 7 15k 10k", "write -q -P 8 100k 5k")
    data = path.read_bytes()
    return _with_copied(data) if command.copied else data


def _with_copied(data: bytes) -> bytes:
    """Set "copied" in L2 tables that only the first snapshot's L1 table refers to."""
    header = parse(data[:512])
    table = parse_table(data[header.snapshots_offset :], header.nb_snapshots, header.size)
    snapshot, changed = table.entries[0], bytearray(data)
    active = np.frombuffer(data, ">u8", header.l1_size, header.l1_offset) & np.uint64(OFFSET_MASK)
    for word in np.frombuffer(data, ">u8", snapshot.l1_size, snapshot.l1_offset).tolist():
        offset = word & OFFSET_MASK
        if offset and offset not in active.tolist():
            entries = np.frombuffer(changed, ">u8", header.geometry.cluster_size // 8, offset)
            entries[entries != 0] |= np.uint64(COPIED)
    assert changed != data
    return bytes(changed)


def backing_data(command: Command) -> bytes:
    """Return the content of the backing file; it has no zeroes."""
    return ((b"\xbb" * 511 + b"\xbc") * (command.backing // 512 + 1))[: command.backing]


@asynccontextmanager
async def using(
    command: Command, data: bytes, **members: Any
) -> AsyncIterator[tuple[RecordingNode, Qcow2Node, BlockBackend]]:
    """Open a command's image, on a file with this data, with its backing file."""
    file, backing = RecordingNode(data), None
    if command.backing:
        backing = RecordingNode(backing_data(command), "backing")
    with mock.patch.object(allocator, "GROWTH", GROWTH):
        async with opened_on(file, backing=backing, **members) as (node, backend):
            yield file, node, backend


@dataclass(frozen=True)
class Seen:
    """A user's view of an image."""

    data: bytes
    backing_name: bytes | None
    snapshots: tuple[bytes, ...]
    #: The bitmaps that are consistent.
    bitmaps: frozenset[str]
    #: The content of each snapshot; empty: not read.
    kept: tuple[str, ...] = ()

    @property
    def described(self) -> str:
        """A short description."""
        length, over = len(self.data), self.backing_name
        return f"<{length} bytes {_digest(self.data)}, {self.snapshots} {self.kept}, over {over!r}>"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


async def look(node: Qcow2Node, backend: BlockBackend) -> Seen:
    """Return the present view of an image."""
    data = await read(backend, 0, node.size)
    image = node._image
    return Seen(
        data,
        image.header.backing_file,
        tuple(each.name for each in image.snapshots.entries),
        frozenset(str(each.name) for each in node.bitmaps if each.persistent),
    )


async def look_closely(node: Qcow2Node, backend: BlockBackend) -> Seen:
    """Return the view with the content of snapshots. The image must not be used afterwards."""
    seen, image, kept = await look(node, backend), node._image, []
    for each in image.snapshots.entries:
        image.tables.clear()
        raw = await read_array(image.file, each.l1_offset, each.l1_size, ">u8")
        image.tables.l1 = raw.astype(np.uint64)
        image.header.size = each.disk_size
        image.new_publisher()
        kept.append(_digest(await read(backend, 0, each.disk_size)))
    return replace(seen, kept=tuple(kept))


async def find_harm(image: Image) -> str:
    """Return a fault of an image that may lose data, or an empty string. Leaks are no fault."""
    gathered, faults = await gather_references(image, Pace(image, "looking for harm"))
    if faults.wrong:
        return f"{faults.wrong} entries have invalid offsets"
    references = {
        cluster: count
        for group in gathered.blocks(9).tolist()
        for cluster, count in enumerate(gathered.window(group << 9, group + 1 << 9), group << 9)
        if count
    }
    for cluster, count in references.items():
        found = await image.refcounts.get(cluster)
        if found < count:
            return f"cluster {cluster}: refcount {found}, {count} references"
    geometry = image.geometry
    for word in image.tables.l1.tolist():
        table = word & OFFSET_MASK
        if not table:
            continue
        if word & COPIED and references[table >> geometry.cluster_bits] > 1:
            return f"L2 table {table:#x} is shared and may be changed in place"
        raw = await read_array(image.file, table, geometry.cluster_size // 8, ">u8")
        entries = raw.astype(np.uint64)[:: 2 if geometry.extended_l2 else 1]
        for entry in entries.tolist():
            host = entry & OFFSET_MASK
            if entry & COMPRESSED or not entry & COPIED:
                continue
            if references[host >> geometry.cluster_bits] > 1:
                return f"cluster at {host:#x} is shared and may be changed in place"
    return ""


async def count_past_end(image: Image) -> int:
    """Return how many clusters past the disk's end are mapped."""
    geometry, found = image.geometry, 0
    for index, word in enumerate(image.tables.l1.tolist()):
        if word & OFFSET_MASK:
            entries = geometry.cluster_size // 8
            raw = await read_array(image.file, word & OFFSET_MASK, entries, ">u8")
            words = raw.reshape(1 << geometry.l2_bits, -1)
            past = max(geometry.clusters(image.size) - (index << geometry.l2_bits), 0)
            found += int(words[past:].any(axis=1).sum())
    return found

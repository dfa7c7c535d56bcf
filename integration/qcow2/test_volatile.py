# SPDX-License-Identifier: Apache-2.0
"""A durable write may bypass the driver only if a crash can't undo the cluster's entry.

Random requests run concurrently; some use the extent map as the engine does. After each turn of the
event loop, the map is compared with the durable content of the files, and so is each block whose
write was acknowledged as durable.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.durable import DurableDisk, DurableFile
from integration.qcow2.tools import content, opened, qemu_img, qemu_io, read, run, write
from tests.block.support import RW, options
from vhostblk.block.drivers.qcow2.layout import OVERWRITE, VOLATILE
from vhostblk.block.drivers.qcow2.node import Qcow2Node
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.iovec import IoVec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

SIZE = 2 << 20
BLOCK = 2048
#: Scenes of each form; and the most scenes to run until all cases have occurred.
SEEDS, MOST = 3, 30
SMALL = {"l2_cache_size": 1024, "l2_cache_entry_size": 512}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "small cache": ("cluster_size=4k", SMALL),
    "lazy": ("cluster_size=4k,lazy_refcounts=on", {}),
    "extended": ("extended_l2=on,cluster_size=64k", {"l2_cache_entry_size": 512}),
    "data file": ("cluster_size=4k", SMALL),
}


class Scene:
    """An image on recorded files, requests in flight, and the known content of the disk."""

    def __init__(
        self, node: Qcow2Node, backend: BlockBackend, file: DurableFile, data: DurableFile
    ) -> None:
        self.node = node
        self.image = node._image
        self.backend = backend
        self.file, self.data = file, data
        self.disk = DurableDisk(self.image, file, data)
        self.unit = 1 << self.image.publisher.unit_bits
        self.cluster = self.image.geometry.cluster_size
        #: Content of blocks, by number, that is known and not being changed.
        self.blocks = dict.fromkeys(range(SIZE // BLOCK), 0)
        #: Content of blocks that has to survive a crash.
        self.stored = dict(self.blocks)
        self.busy: set[int] = set()
        self.snapshots = asyncio.Lock()
        #: Counts of durable writes through the map, and of those that went to the driver.
        self.passed = self.asked = 0
        self._checked: tuple[Any, ...] = ()
        #: How many requests have taken each block.
        self.versions = dict.fromkeys(self.blocks, 0)
        self.tasks: set[asyncio.Task[None]] = set()

    # Invariants.

    def check(self) -> None:
        """Compare the map and acknowledged data with the files."""
        entries = self.image.publisher.entries
        changes = (self.file.changes, self.data.changes)
        state = (*changes, entries.tobytes())
        if state == self._checked:
            return
        for unit, entry in enumerate(entries.tolist()):
            if entry & OVERWRITE and not entry & VOLATILE:
                assert entry & ~511 == self.disk.place(unit), unit
        for block in self.stored if changes != self._checked[:2] else ():
            self.check_block(block)
        self._checked = state

    def check_block(self, block: int) -> None:
        """Check that a block survives a crash."""
        found = self.disk.read(block * BLOCK, BLOCK)
        assert found == bytes([self.stored[block]]) * BLOCK, block

    def start(self, what: Coroutine[Any, Any, None]) -> None:
        """Begin a request."""
        task = asyncio.get_running_loop().create_task(what)
        self.tasks.add(task)

    def take(self, first: int, count: int) -> range | None:
        """Take blocks for a request, if no other request has any of them."""
        blocks = range(first, first + count)
        if self.busy.intersection(blocks):
            return None
        self.busy.update(blocks)
        for block in blocks:
            self.versions[block] += 1
            self.blocks.pop(block, None)
            self.stored.pop(block, None)
        return blocks

    def done(self, blocks: range, byte: int, *, stored: bool) -> None:
        """Note the result of a request, and release its blocks."""
        self.busy.difference_update(blocks)
        for block in blocks:
            self.blocks[block] = byte
            if stored:
                self.stored[block] = byte
                self.check_block(block)

    # Requests.

    async def write(self, blocks: range, byte: int, flags: WriteFlags) -> None:
        iov = IoVec.from_buffers([bytearray([byte]) * (len(blocks) * BLOCK)])
        try:
            async with self.backend.request():
                await self.backend.pwritev(blocks.start * BLOCK, iov, flags)
        except OSError:
            self.busy.difference_update(blocks)
        else:
            self.done(blocks, byte, stored=bool(flags))

    async def write_by_map(self, block: int, byte: int, flags: WriteFlags) -> None:
        """Write a block as the engine does."""
        async with self.backend.request():
            publisher = self.image.publisher
            entry = int(publisher.entries[block * BLOCK // self.unit])
            if entry & OVERWRITE and not (flags and entry & VOLATILE):
                place = (entry & ~511) + block * BLOCK % self.unit
                phase, data = publisher.begin(), bytes([byte]) * BLOCK
                if flags:
                    self.passed += 1
                    await self.data.pwrite_synced(place, data)
                else:
                    await self.data.pwritev(place, IoVec.from_buffers([bytearray(data)]))
                publisher.end(phase)
                self.done(range(block, block + 1), byte, stored=bool(flags))
                return
            self.asked += bool(flags and entry & OVERWRITE)
        await self.write(range(block, block + 1), byte, flags)

    async def zero(self, blocks: range, flags: WriteFlags) -> None:
        stored = bool(flags & WriteFlags.FUA)
        try:
            async with self.backend.request():
                await self.backend.pwrite_zeroes(blocks.start * BLOCK, len(blocks) * BLOCK, flags)
        except OSError:
            self.busy.difference_update(blocks)
        else:
            self.done(blocks, 0, stored=stored)

    async def discard(self, blocks: range) -> None:
        async with self.backend.request():
            await self.backend.pdiscard(blocks.start * BLOCK, len(blocks) * BLOCK)
        self.busy.difference_update(blocks)

    async def flush(self) -> None:
        before = {block: self.versions[block] for block in self.blocks}
        with suppress(OSError):
            async with self.backend.request():
                await self.backend.flush()
            for block, version in before.items():
                if self.versions[block] == version:
                    self.stored[block] = self.blocks[block]
                    self.check_block(block)

    # Actions of the driver.

    async def write_tables(self) -> None:
        """Write metadata without a flush, and drop tables that are not in use."""
        with suppress(OSError):
            async with self.image.lock:
                await self.image.commit.write()
        self.image.tables.clean_unused()

    async def change_graph(self) -> None:
        async with self.node._graph.drained([self.node]):
            self.node.child_changed("backing")

    async def fail(self) -> None:
        """Make flushes fail for a while; other tests cover that for snapshots."""
        async with self.snapshots:
            self.file.broken = True
            for _ in range(30):
                await asyncio.sleep(0)
            self.file.broken = False

    async def change_snapshots(self) -> None:
        async with self.snapshots:
            if self.node.snapshots():
                await self.node.delete_snapshot(name="s")
            else:
                await self.node.create_snapshot("s")


def _begin(scene: Scene, rng: random.Random, kind: str) -> None:
    """Begin an action."""
    flags = rng.choice([WriteFlags.NONE, WriteFlags.FUA])
    byte = rng.randrange(1, 255)
    if kind in ("zero", "discard"):
        count = scene.cluster // BLOCK
        blocks = scene.take(rng.randrange(SIZE // scene.cluster) * count, count)
        if blocks is None:
            return
        flags |= rng.choice([WriteFlags.NONE, WriteFlags.MAY_UNMAP])
        scene.start(scene.zero(blocks, flags) if kind == "zero" else scene.discard(blocks))
    elif kind in ("write", "map"):
        # Most are near to each other, so that they overlap.
        number = rng.randrange(rng.choice([32, 32, 32, SIZE // BLOCK]))
        count = rng.choice([1, 1, 2, 5]) if kind == "write" else 1
        blocks = scene.take(number, min(count, SIZE // BLOCK - number))
        if blocks is None:
            return
        if kind == "write":
            scene.start(scene.write(blocks, byte, flags))
        else:
            scene.start(scene.write_by_map(number, byte, flags))
    else:
        scene.start(getattr(scene, kind)())


async def _drive(scene: Scene, rng: random.Random, rounds: int) -> None:
    kinds = ["write"] * 4 + ["map"] * 8 + ["zero", "discard", "flush", "write_tables"]
    rare = ["change_graph", "fail", "fail"]
    if scene.data is scene.file:
        rare.append("change_snapshots")
    for _ in range(rounds):
        scene.file.flush_turns = rng.choice([1, 3, 20])
        kind = rng.choice(kinds) if rng.random() < 0.97 else rng.choice(rare)
        _begin(scene, rng, kind)
        for _ in range(rng.choice([0, 1, 2, 10])):
            await asyncio.sleep(0)
            scene.check()
    while any(not task.done() for task in scene.tasks):
        await asyncio.sleep(0)
        scene.check()
    for task in scene.tasks:
        task.result()


def _make_files(path: Path, form: str) -> tuple[DurableFile, DurableFile]:
    """Make an image; return its files for metadata and data."""
    creation, data_path = FORMS[form][0], path.with_suffix(".data")
    if form == "data file":
        creation += f",data_file={data_path}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", creation, path, SIZE)
    file = DurableFile("file", path.read_bytes())
    if form != "data file":
        return file, file
    return file, DurableFile("data", data_path.read_bytes())


@asynccontextmanager
async def _scene(path: Path, form: str) -> AsyncIterator[Scene]:
    file, data = _make_files(path, form)
    graph = Graph()
    graph._nodes["file"] = file
    members = FORMS[form][1]
    if data is not file:
        graph._nodes["data"] = data
        members = {**members, "data_file": "data"}
    disk = options(driver="qcow2", node_name="disk", file="file", discard="unmap", **members)
    node = await graph.add(disk)
    assert isinstance(node, Qcow2Node)
    backend = BlockBackend("test", RW)
    backend.attach(graph, node)
    yield Scene(node, backend, file, data)
    file.broken = data.broken = False
    await backend.detach()
    await graph.close()


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_volatile_is_stored(tmp_path: Path, form: str) -> None:
    passed = asked = 0

    async def main(rng: random.Random) -> None:
        """Run one scene; at the end, the whole file is durable."""
        nonlocal passed, asked
        async with _scene(tmp_path / "disk.qcow2", form) as scene:
            await _drive(scene, rng, 300)
            await scene.backend.flush()
            scene.check()
            assert not (scene.image.publisher.entries & VOLATILE).any()
            scene.image.tables.clear()
            await read(scene.backend, 0, SIZE)
            assert not (scene.image.publisher.entries & VOLATILE).any()
            passed, asked = passed + scene.passed, asked + scene.asked

    for seed in range(MOST):
        run(main(random.Random(f"{form} {seed}")))
        if seed + 1 >= SEEDS and passed and asked:
            break
    assert passed > 0
    assert asked > 0


def test_what_another_process_has_written_need_not_be_stored(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    qemu_io(path, "write -q -P 1 0 128k")

    async def main() -> None:
        async with opened(path) as (node, backend):
            assert isinstance(node, Qcow2Node)
            entries = node._image.publisher.entries
            await read(backend, 0, 1)
            assert [bool(entry & VOLATILE) for entry in entries[:3].tolist()] == [True, True, False]
            await backend.flush()
            assert not (entries & VOLATILE).any()
            await write(backend, 128 << 10, b"x")
            assert entries[2] & OVERWRITE
            assert entries[2] & VOLATILE

    run(main())


def test_flushes_that_come_meanwhile_are_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with _scene(tmp_path / "disk.qcow2", "lazy") as scene:
            scene.file.flush_turns = 10
            await asyncio.gather(*(scene.backend.flush() for _ in range(20)))
            assert scene.file.changes == 2

    run(main())


def test_who_shares_a_flush_gets_its_error_and_the_next_flush_succeeds(tmp_path: Path) -> None:
    async def main() -> None:
        async with _scene(tmp_path / "disk.qcow2", "lazy") as scene:
            scene.file.broken = True
            flushes = [scene.backend.flush() for _ in range(3)]
            found = await asyncio.gather(*flushes, return_exceptions=True)
            assert [type(each) for each in found] == [OSError] * 3
            scene.file.broken = False
            await scene.backend.flush()

    run(main())


def test_what_a_failed_flush_was_to_cover_the_next_one_does(tmp_path: Path) -> None:
    async def main() -> None:
        async with _scene(tmp_path / "disk.qcow2", "lazy") as scene:
            await scene.backend.flush()
            changed = range(0, SIZE // scene.unit, 50)
            for unit in changed:
                await write(scene.backend, unit * scene.unit, b"x" * BLOCK)
            entries = scene.image.publisher.entries
            assert all(entries[unit] & VOLATILE for unit in changed)
            async with scene.image.lock:
                await scene.image.commit.write()  # then only what brings it to storage fails
            scene.file.broken = True
            with pytest.raises(OSError, match="Input/output"):
                await scene.backend.flush()
            scene.file.broken = False
            assert all(entries[unit] & VOLATILE for unit in changed)
            await scene.backend.flush()
            assert not (entries & VOLATILE).any()

    run(main())


def test_compressed_clusters_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"

    async def main() -> None:
        async with _scene(path, "lazy") as scene:
            graph = scene.node._graph
            top = await graph.add(options(driver="compress", node_name="top", file="disk"))
            user = BlockBackend("user", RW)
            user.attach(graph, top)
            user.enable_write_cache = False
            for expected in (b"\x01" * 8192, b"\x01" * 4096 + b"\x02" * 512 + b"\x01" * 3584):
                await write(user, 0, expected)
                path.write_bytes(scene.file.stable)
                assert content(path, tmp_path / "raw")[:8192] == expected
            await user.pwrite_zeroes(4096, 4096)
            path.write_bytes(scene.file.stable)
            assert content(path, tmp_path / "raw")[:8192] == b"\x01" * 4096 + bytes(4096)
            await user.detach()

    run(main())

# SPDX-License-Identifier: Apache-2.0
"""The order of writes to the file; and former content of host clusters, which must not show."""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING

import pytest

from integration.qcow2.record import RecordingNode, crashes, opened_on
from integration.qcow2.test_bursts import burst
from integration.qcow2.tools import check, content, opened, qemu_img, qemu_io, read, run, write
from tests.block.support import fails_with
from vhostblk.block.drivers.qcow2.node import Qcow2Node
from vhostblk.block.graph.permissions import Perm

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20
CLUSTER = 16 << 10


@pytest.mark.parametrize("form", ["cluster_size=16k", "cluster_size=16k,extended_l2=on"])
@pytest.mark.parametrize("reopened", [False, True])
def test_a_table_that_a_snapshot_shares_is_not_changed(
    tmp_path: Path, form: str, reopened: bool
) -> None:
    """It is in memory already when a burst allocates clusters that it maps."""
    path, model = tmp_path / "disk.qcow2", bytearray(SIZE)
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, SIZE)
    qemu_io(path, f"write -q -P 1 0 {CLUSTER}")
    model[:CLUSTER] = b"\1" * CLUSTER
    before = bytes(model)
    if reopened:
        qemu_img("snapshot", "-c", "s", path)

    async def main() -> None:
        async with opened(path) as (node, backend):
            assert isinstance(node, Qcow2Node)
            if not reopened:
                assert await read(backend, 0, SIZE) == before
                await node.create_snapshot("s")
            assert await read(backend, 0, SIZE) == before
            pieces = [(at, b"n" * 4096) for at in range(4 * CLUSTER, 12 * CLUSTER, CLUSTER)]
            assert not any(await burst(backend, model, pieces))
            assert await read(backend, 0, SIZE) == model

    run(main())
    check(path)
    assert content(path, tmp_path / "raw") == model
    qemu_img("snapshot", "-a", "s", path)
    check(path)
    assert content(path, tmp_path / "raw") == before


def test_a_table_that_a_snapshot_shares_is_copied_as_a_whole(tmp_path: Path) -> None:
    """Most of its slices have not been read when one of them changes."""
    path, model = tmp_path / "disk.qcow2", bytearray(b"\1" * SIZE)
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, SIZE)
    qemu_io(path, f"write -q -P 1 0 {SIZE}")
    qemu_img("snapshot", "-c", "s", path)

    async def main() -> None:
        async with opened(path, l2_cache_entry_size=512) as (_, backend):
            await write(backend, SIZE // 2, b"n" * 4096)
            model[SIZE // 2 : SIZE // 2 + 4096] = b"n" * 4096
            await backend.flush()
            assert await read(backend, 0, SIZE) == model

    run(main())
    check(path)
    assert content(path, tmp_path / "raw") == model


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_freed_cluster_had_is_seen_by_nobody(tmp_path: Path, count: int) -> None:
    """The file keeps its content. It is allocated together with clusters that were never used."""
    path, model = tmp_path / "disk.qcow2", bytearray(SIZE)
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER}", path, SIZE)
    file = {"driver": "file", "filename": str(path), "discard": "ignore"}

    async def main() -> None:
        async with opened(path, discard="unmap", file=file) as (node, backend):
            assert isinstance(node, Qcow2Node)
            old = [(at, b"o" * CLUSTER) for at in range(0, 4 * CLUSTER, CLUSTER)]
            assert not any(await burst(backend, model, old))
            allocator = node._image.allocator
            last = allocator.high_water - count
            await backend.pdiscard((4 - count) * CLUSTER, count * CLUSTER)
            await backend.flush()
            assert allocator.hint == last
            model[(4 - count) * CLUSTER : 4 * CLUSTER] = bytes(count * CLUSTER)
            new = [(at, b"n" * 4096) for at in range(8 * CLUSTER, (10 + count) * CLUSTER, CLUSTER)]
            assert not any(await burst(backend, model, new))
            assert allocator.high_water > last + count
            assert await read(backend, 0, SIZE) == model

    run(main())
    check(path)
    assert content(path, tmp_path / "raw") == model


SUBCLUSTER = CLUSTER // 32


def test_data_of_a_subcluster_is_there_before_its_bit(tmp_path: Path) -> None:
    """It is the first write since the image was opened; the backing file has other data."""
    path, base = tmp_path / "disk.qcow2", tmp_path / "base"
    below = random.Random("base").randbytes(SIZE)
    base.write_bytes(below)
    form = f"extended_l2=on,cluster_size={CLUSTER}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, "-b", base, "-F", "raw", path, SIZE)
    qemu_io(path, f"write -q -P 1 0 {SUBCLUSTER}")
    before = path.read_bytes()
    file, backing = RecordingNode(before), RecordingNode(below, "backing")
    start = 4 * SUBCLUSTER
    stop = start + SUBCLUSTER
    old = b"\1" * SUBCLUSTER + below[SUBCLUSTER:]

    async def main() -> None:
        async with opened_on(file, backing=backing) as (_, backend):
            await write(backend, start, b"n" * SUBCLUSTER)
            await backend.flush()
            states = list(crashes(before, file.log))
            assert old != await read(backend, 0, SIZE)
        assert len(states) >= 3
        for state in states:
            below_it = RecordingNode(below, "backing")
            crashed = RecordingNode(state)
            async with opened_on(crashed, backing=below_it, read_only=True) as (_, backend):
                seen = await read(backend, 0, SIZE)
            assert seen[:start] + seen[stop:] == old[:start] + old[stop:]
            changed = set(zip(seen[start:stop], old[start:stop], strict=True))
            assert all(byte in (former, ord("n")) for byte, former in changed)

    run(main())


def test_data_of_a_new_cluster_is_there_before_its_entry(tmp_path: Path) -> None:
    """Everything else has been flushed, and lazy refcounts are not written."""
    path, base = tmp_path / "disk.qcow2", tmp_path / "base"
    below = random.Random("base").randbytes(SIZE)
    base.write_bytes(below)
    form = f"lazy_refcounts=on,cluster_size={CLUSTER}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, "-b", base, "-F", "raw", path, SIZE)
    qemu_io(path, f"write -q -P 1 0 {CLUSTER}")
    qemu_img("snapshot", "-c", "s", path)
    file, backing = RecordingNode(path.read_bytes()), RecordingNode(below, "backing")
    places = range(4 * CLUSTER, 8 * CLUSTER, CLUSTER)
    states: list[bytes] = []
    old, model = b"", bytearray(SIZE)

    async def main() -> None:
        nonlocal old
        async with opened_on(file, backing=backing) as (node, backend):
            assert isinstance(node, Qcow2Node)
            # The snapshot still refers to the old cluster, so no cluster becomes free.
            await write(backend, 0, b"w" * CLUSTER)
            await backend.flush()
            assert node._image.allocator.gives_fresh
            assert not node._image.commit.unsynced
            old = await read(backend, 0, SIZE)
            before = bytes(file.data)
            file.log.clear()
            assert not any(await burst(backend, model, [(at, b"n" * 4096) for at in places]))
            await backend.flush()
            states.extend(crashes(before, file.log))
        for state in states:
            below_it = RecordingNode(below, "backing")
            crashed = RecordingNode(state)
            async with opened_on(crashed, backing=below_it, read_only=True) as (_, backend):
                seen = await read(backend, 0, SIZE)
            for byte, former, new in zip(seen, old, model, strict=True):
                assert byte in (former, new) if new else byte == former

    run(main())
    assert len(states) >= 3


def test_a_new_table_is_empty_before_an_entry_leads_to_it(tmp_path: Path) -> None:
    """Its cluster had data. With lazy refcounts, nothing else has to be flushed before."""
    path, size = tmp_path / "disk.qcow2", 64 << 20
    form = f"lazy_refcounts=on,cluster_size={CLUSTER}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, size)
    file, second = RecordingNode(path.read_bytes()), size // 2  # another table begins there
    states: list[bytes] = []

    async def main() -> None:
        async with opened_on(file, discard="unmap") as (node, backend):
            await write(backend, 0, b"\xaa" * CLUSTER)
            await backend.flush()
            await backend.pdiscard(0, CLUSTER)
            await backend.flush()
            assert not node._image.commit.unsynced
            before = bytes(file.data)
            file.log.clear()
            async with node._image.lock:  # as if there were room for a table, but not for data
                await node._image.ensure_table(second)
                await node._image.commit.write()
            await backend.flush()
            states.extend(crashes(before, file.log))
        for state in states:
            async with opened_on(RecordingNode(state), read_only=True) as (_, backend):
                assert await read(backend, second, CLUSTER) == bytes(CLUSTER)

    run(main())
    assert len(states) >= 3


@pytest.mark.parametrize("name", ["enabled", "disabled"])
def test_a_bitmap_is_marked_before_the_disk_changes(tmp_path: Path, name: str) -> None:
    """Between opening and crash there are only the flushes that vhostblk makes itself."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER}", path, SIZE)
    qemu_io(path, f"write -q -P 1 0 {4 * CLUSTER}")
    qemu_img("bitmap", "--add", *(["--disable"] if name == "disabled" else []), path, "b")
    before, disk = path.read_bytes(), content(path, tmp_path / "raw")
    file = RecordingNode(before)

    async def main() -> None:
        async with opened_on(file) as (_, backend):
            await write(backend, CLUSTER, b"n" * 4096)
            states = list(crashes(before, file.log))
        assert len(states) >= 3
        marked = 0
        for state in states:
            async with opened_on(RecordingNode(state), read_only=True) as (node, backend):
                (bitmap,) = node.bitmaps
                assert bitmap.inconsistent or await read(backend, 0, SIZE) == disk
                marked += bitmap.inconsistent
        assert 0 < marked < len(states)

    run(main())


def test_clusters_past_the_end_are_not_seen_when_the_disk_grows(tmp_path: Path) -> None:
    """Such clusters come from QEMU's VM state, or from a crash while the disk shrank."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, 8 << 20)
    qemu_io(path, "write -q -P 1 0 8M")
    data = bytearray(path.read_bytes())
    data[24:32] = (1 << 20).to_bytes(8, "big")
    path.write_bytes(data)

    async def main() -> None:
        async with opened(path, Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE) as (_, backend):
            assert backend.size == 1 << 20
            await backend.truncate(5 << 20)
            assert await read(backend, 0, 5 << 20) == b"\1" * (1 << 20) + bytes(4 << 20)

    run(main())
    check(path)
    assert content(path, tmp_path / "raw") == b"\1" * (1 << 20) + bytes(4 << 20)


@pytest.mark.parametrize("size", [SIZE // 2, 2 * SIZE])
def test_a_disk_whose_data_file_cannot_be_resized_stays_what_it_is(
    tmp_path: Path, size: int
) -> None:
    path, data = tmp_path / "disk.qcow2", tmp_path / "data"
    form = f"data_file={data},data_file_raw=on"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, SIZE)
    qemu_io(path, f"write -q -P 1 0 {SIZE}")
    file, external = RecordingNode(path.read_bytes()), RecordingNode(data.read_bytes(), "data")

    async def main() -> None:
        async with opened_on(file, others=[external], data_file="data") as (node, backend):
            external.fails_at = lambda _: errno.ENOSPC
            with fails_with(errno.ENOSPC):
                await backend.truncate(size)
            external.fails_at = lambda _: 0
            assert node.size == backend.size == SIZE
            assert await read(backend, 0, SIZE) == b"\1" * SIZE
            await backend.truncate(size)
            assert external.size == size
            seen = await read(backend, 0, size)
            assert seen == (b"\1" * SIZE)[:size].ljust(size, b"\0") == bytes(external.data)

    run(main())
    path.write_bytes(file.data)
    data.write_bytes(external.data)
    check(path)

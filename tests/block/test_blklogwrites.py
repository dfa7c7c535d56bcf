# SPDX-License-Identifier: Apache-2.0
"""Logs of writes: replayed they give the disk, whatever is written and how it overlaps."""

from __future__ import annotations

import asyncio
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.block.support import RW, options, write_bytes
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph

SIZE = 64 << 10
INITIAL = bytes([0x5A]) * SIZE


def replay(log: bytes, disk: bytearray) -> list[int]:
    """Replay a log; return the flags of its entries. Written from the format's description."""
    magic, version, count, sector_size = struct.unpack_from("<QQQI", log)
    assert (magic, version) == (0x6A736677736872, 1)
    position, found = sector_size, []
    for _ in range(count):
        sector, sectors, flags, _ = struct.unpack_from("<QQQQ", log, position)
        position += sector_size
        found.append(flags)
        start, length = sector * sector_size, sectors * sector_size
        if flags & 4:
            disk[start : start + length] = bytes(length)
            continue
        disk[start : start + length] = log[position : position + length]
        position += length
    return found


requests = st.tuples(
    st.sampled_from(["write", "write", "zero", "discard", "flush"]),
    st.integers(0, SIZE // 512 - 1),
    st.integers(1, 32),
    st.integers(1, 255),
)


async def open_disk(directory: Path, **members: Any) -> tuple[Graph, BlockBackend]:
    graph = Graph()
    for name in ("disk", "log"):
        definition = {"driver": "file", "filename": str(directory / name), "discard": "unmap"}
        await graph.add(options(**definition, node_name=name))
    await graph.add(
        options(
            driver="blklogwrites", node_name="w", file="disk", log="log", discard="unmap", **members
        )
    )
    backend = BlockBackend("test", RW)
    backend.attach(graph, graph.find("w"))
    assert backend.extent_map() is None
    return graph, backend


async def close_disk(graph: Graph, backend: BlockBackend) -> None:
    await backend.detach()
    await graph.close()


async def do(backend: BlockBackend, request: tuple[str, int, int, int]) -> None:
    kind, sector, count, byte = request
    offset, length = sector * 512, min(count * 512, SIZE - sector * 512)
    if kind == "write":
        await write_bytes(backend, offset, bytes([byte]) * length)
    elif kind == "zero":
        await backend.pwrite_zeroes(offset, length)
    elif kind == "discard":
        await backend.pdiscard(offset, length)
    else:
        await backend.flush()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(requests, max_size=6), min_size=1, max_size=3),
    st.sampled_from([512, 2048]),
    st.sampled_from([1, 2, 4096]),
)
def test_a_replayed_log_gives_the_disk(
    bursts: list[list[tuple[str, int, int, int]]], sector_size: int, interval: int
) -> None:
    async def main(directory: Path) -> None:
        (directory / "disk").write_bytes(INITIAL)
        (directory / "log").write_bytes(b"")
        members: dict[str, Any] = {"log_sector_size": sector_size}
        for burst in bursts:
            graph, backend = await open_disk(
                directory, **members, log_super_update_interval=interval
            )
            # Requests that overlap in place don't in time: which is first is undefined.
            for request in burst:
                await do(backend, request)
            fixed = [("write", sector, 1, sector + 1) for sector in range(4)]
            await asyncio.gather(*(do(backend, request) for request in fixed))
            await close_disk(graph, backend)
            members = {"log_append": True}
        disk = bytearray(INITIAL)
        flags = replay((directory / "log").read_bytes(), disk)
        assert disk == (directory / "disk").read_bytes()
        assert flags.count(1) >= len(bursts)

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(Path(directory)))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 31, 32, 512, 1 << 23, 1 << 31]),
    st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 31)),
        max_size=4,
    ),
)
def test_any_log_is_appended_to_or_refused(
    count: int, sector_size: int, entries: list[tuple[int, int, int]]
) -> None:
    async def main(directory: Path) -> None:
        (directory / "disk").write_bytes(bytes(4096))
        log = struct.pack("<QQQI", 0x6A736677736872, 1, count, sector_size).ljust(512, b"\0")
        for sector, sectors, flags in entries:
            log += struct.pack("<QQQQ", sector, sectors, flags, 0).ljust(512, b"\0")
        (directory / "log").write_bytes(log)
        try:
            graph, backend = await open_disk(directory, log_append=True)
        except BlockError:
            return
        await close_disk(graph, backend)

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(Path(directory)))


def test_flushes_that_overlap_share_an_update(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "disk").write_bytes(INITIAL)
        (tmp_path / "log").write_bytes(b"")
        graph, backend = await open_disk(tmp_path)

        async def write_and_flush(sector: int) -> None:
            await do(backend, ("write", sector, 1, 7))
            await do(backend, ("flush", 0, 1, 1))
            flags = replay((tmp_path / "log").read_bytes(), bytearray(INITIAL))
            assert flags.count(0) >= 1

        await asyncio.gather(*(write_and_flush(sector) for sector in range(12)))
        flags = replay((tmp_path / "log").read_bytes(), bytearray(INITIAL))
        assert flags.count(0) == 12
        await close_disk(graph, backend)

    asyncio.run(main())


def test_the_log_belongs_to_one(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "disk").write_bytes(INITIAL)
        (tmp_path / "log").write_bytes(b"")
        graph, backend = await open_disk(tmp_path)
        other = BlockBackend("other", RW)
        with pytest.raises(BlockError, match="unshared by node 'w'"):
            other.attach(graph, graph.find("log"))
        await close_disk(graph, backend)

    asyncio.run(main())

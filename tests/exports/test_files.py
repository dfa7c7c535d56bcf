# SPDX-License-Identifier: Apache-2.0
"""Exports of real files: acknowledged data is on the disk, and in the right file."""

# ruff: noqa: ASYNC240 -- looking at the files from outside is the test

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import options
from tests.exports.support import BASE, FLUSH, WCE, Frontend, frontend
from tests.frontend.blk import range_segments
from tests.frontend.ring import Segment
from tests.unsynced import directory_on_disk, unsynced_bytes
from tests.virtio_blk.support import MIB, header, pattern, turns
from vhostblk.block.graph.graph import Graph
from vhostblk.engine.iothread import IothreadOptions
from vhostblk.virtio_blk.layout import RequestType, Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("lane")

OUT, ZEROES = RequestType.OUT, RequestType.WRITE_ZEROES


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Make a file on a disk, without dirty pages."""
    with directory_on_disk(tmp_path) as directory:
        path = directory / "disk"
        path.write_bytes(pattern(MIB))
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        yield path


@asynccontextmanager
async def export_of(
    *paths: Path, features: int = BASE | FLUSH | WCE, **members: Any
) -> AsyncIterator[Frontend]:
    """Run a front-end on the node "disk", which is on the first of these files, and start it."""
    graph = Graph()
    for path in paths:
        await graph.add(options(driver="file", node_name=path.name, filename=str(path)))
    node = await graph.add(options(driver="raw", node_name="top", file=paths[0].name))
    async with frontend(node, graph=graph, iothread="polling", **members) as front:
        # Polling takes requests as early as possible.
        front.iothreads.define("polling", IothreadOptions(poll_max_ns=10_000_000))
        front.block_backend.on_resize(front.device.resized)
        front.block_backend.add_drain_listener(front.device)
        await front.connect(features)
        await front.start()
        yield front
        front.block_backend.remove_drain_listener(front.device)
    await front.block_backend.detach()
    await graph.close()


REQUESTS = [(OUT, pattern(8192, 2)), (ZEROES, range_segments([(65536, 8192)]))]


@pytest.mark.parametrize(("kind", "send"), REQUESTS, ids=["write", "zeroes"])
@pytest.mark.parametrize("how", ["option", "driver", "driver, while it runs", "no flush"])
def test_without_a_cache_what_is_acknowledged_is_on_the_disk(
    disk: Path, how: str, kind: int, send: bytes
) -> None:
    async def run() -> None:
        features = BASE if how == "no flush" else BASE | FLUSH | WCE
        async with export_of(disk, features=features, writethrough=how == "option") as front:
            if how == "driver, while it runs":
                assert await front.done(front.request(OUT, send=bytes(512))) == Status.OK
                assert await front.done(front.request(RequestType.FLUSH)) == Status.OK
            if how.startswith("driver"):
                front.device.set_config(32, b"\0")
            assert await front.done(front.request(kind, send=send)) == Status.OK
            assert unsynced_bytes(disk) == 0

    asyncio.run(run())


@pytest.mark.parametrize(("kind", "send"), REQUESTS, ids=["write", "zeroes"])
def test_flush_puts_it_on_the_disk(disk: Path, kind: int, send: bytes) -> None:
    async def run() -> None:
        async with export_of(disk) as front:
            assert await front.done(front.request(kind, send=send)) == Status.OK
            assert await front.done(front.request(RequestType.FLUSH)) == Status.OK
            assert unsynced_bytes(disk) == 0

    asyncio.run(run())


def test_a_drained_section_begins_when_all_requests_have_ended(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VHOSTBLK_IO_URING", "off")  # threads take longer

    async def run() -> None:
        async with export_of(disk) as front:
            graph = front.block_backend._graph
            assert graph is not None
            queue, send = front.device.queues.running[0], _large_writes(front)

            def is_busy() -> bool:
                send()
                return queue.in_flight > 0

            await front.until(is_busy)
            async with graph.drained([graph.find("disk")]):
                assert not queue.in_flight

    asyncio.run(run())


def _large_writes(front: Frontend) -> Callable[[], None]:
    """Return a function that fills the ring with writes of the whole disk."""
    memory, ring = front.memory, front.rings[0]
    data = memory.allocate(MIB, region=1)
    head, status = memory.allocate(16, region=1), memory.allocate(1, 1, region=1)
    memory.write(head, header(OUT))

    def send() -> None:
        ring.poll()
        while ring.free >= 3:
            ring.add([Segment(head, 16), Segment(data, MIB), Segment(status, 1, True)])
        ring.kick(force=True)

    return send


def test_disk_that_has_shrunk_is_not_written_past_its_end(disk: Path) -> None:
    async def run() -> None:
        async with export_of(disk) as front:
            graph = front.block_backend._graph
            assert graph is not None
            assert await front.done(front.request(OUT, send=bytes(8192))) == Status.OK
            await graph.resize(front.block_backend.node, 4096)
            assert await front.done(front.request(OUT, send=bytes(8192))) == Status.IOERR
            assert await front.done(front.request(OUT, send=b"x" * 4096)) == Status.OK
            assert disk.read_bytes() == b"x" * 4096

    asyncio.run(run())


def test_disk_that_has_grown_is_written_in_its_new_part(disk: Path) -> None:
    os.truncate(disk, 512)

    async def run() -> None:
        async with export_of(disk) as front:
            graph = front.block_backend._graph
            assert graph is not None
            assert await front.done(front.request(OUT, send=bytes(4096))) == Status.IOERR
            await graph.resize(front.block_backend.node, 4096)
            assert await front.done(front.request(OUT, send=b"x" * 4096)) == Status.OK
            assert disk.read_bytes() == b"x" * 4096

    asyncio.run(run())


def test_requests_go_to_the_file_that_the_graph_has(tmp_path: Path) -> None:
    """Requests that wait for the end of a drained section do so, too."""
    paths = [tmp_path / name for name in ("one", "other")]
    for path in paths:
        path.write_bytes(bytes(MIB))

    async def run() -> None:
        async with export_of(*paths) as front:
            graph = front.block_backend._graph
            assert graph is not None
            for turn in range(1, 13):
                path = paths[turn % 2]
                async with graph.drained([graph.find("top")]):
                    request = front.request(OUT, send=bytes([turn]) * 512)
                    await turns()
                    await graph.reopen([options(driver="raw", node_name="top", file=path.name)])
                assert await front.done(request) == Status.OK
                assert path.read_bytes()[:512] == bytes([turn]) * 512
                assert paths[1 - turn % 2].read_bytes()[:512] == bytes([turn - 1]) * 512
                front.rings[0].poll()

    asyncio.run(run())

# SPDX-License-Identifier: Apache-2.0
"""When a completed write is on stable storage without a flush."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.block.support import options
from tests.exports.support import BASE, FLUSH, WCE, frontend, make_backend
from tests.frontend.blk import range_segments
from tests.virtio_blk.support import HandNode
from vhostblk.block.drivers.file import FileNode
from vhostblk.block.graph.graph import Graph
from vhostblk.virtio_blk.layout import RequestType

if TYPE_CHECKING:
    from pathlib import Path

    from vhostblk.vhost_user.backend import Backend

pytestmark = pytest.mark.usefixtures("lane")


def mode(device: Backend) -> int:
    """Read `writeback`."""
    return device.get_config(32, 1)[0]


@pytest.mark.parametrize(("chosen", "log"), [(0, "write 0+512 fua"), (1, "write 0+512")])
def test_driver_chooses(chosen: int, log: str) -> None:
    async def run() -> None:
        async with frontend() as front:
            await front.connect()
            front.device.set_config(32, bytes([chosen]))
            await front.start()
            await front.done(front.request(RequestType.OUT, send=bytes(512)))
            assert front.node.log == [log]
            assert mode(front.device) == chosen

    asyncio.run(run())


def test_driver_that_can_not_flush_gets_write_through() -> None:
    async def run() -> None:
        async with frontend() as front:
            await front.connect(BASE)
            await front.start()
            await front.done(front.request(RequestType.OUT, send=bytes(512)))
            assert front.node.log == ["write 0+512 fua"]

    asyncio.run(run())


def test_driver_that_can_flush_keeps_the_cache() -> None:
    device = make_backend()
    device.set_features(BASE | FLUSH)
    assert mode(device) == 1


def test_driver_that_can_not_flush_may_ask_for_the_cache() -> None:
    """VIRTIO 1.3, 5.2.5.2: `writeback` begins with 0 there."""
    device = make_backend()
    device.set_features(BASE | WCE)
    assert mode(device) == 0
    device.set_config(32, b"\1")
    assert mode(device) == 1


def test_system_gets_the_cache_that_its_firmware_could_not_use() -> None:
    device = make_backend()
    device.set_features(BASE)
    assert mode(device) == 0
    device.set_features(BASE | FLUSH | WCE)
    assert mode(device) == 1


def test_choice_survives_the_same_drivers_next_start() -> None:
    device = make_backend()
    device.set_features(BASE | FLUSH | WCE)
    device.set_config(32, b"\0")
    device.set_features(BASE | FLUSH | WCE)
    assert mode(device) == 0


def test_choice_is_not_kept_for_a_driver_that_has_none() -> None:
    device = make_backend()
    device.set_features(BASE | FLUSH | WCE)
    device.set_config(32, b"\0")
    device.set_features(BASE | FLUSH)
    assert mode(device) == 1


def test_choice_before_the_features() -> None:
    device = make_backend()
    device.set_config(32, b"\0")
    device.set_features(BASE | FLUSH | WCE)
    assert mode(device) == 0


def test_option_writethrough_holds_whatever_the_guest_asks_for() -> None:
    device = make_backend(writethrough=True)
    assert mode(device) == 0
    device.set_features(BASE | FLUSH | WCE)
    device.set_config(32, b"\1")
    assert mode(device) == 0


@pytest.mark.parametrize("writethrough", [False, True])
def test_next_front_end_finds_the_default(writethrough: bool) -> None:
    async def run() -> None:
        device = make_backend(HandNode(), writethrough=writethrough)
        device.set_features(BASE | FLUSH | WCE)
        device.set_config(32, b"\0")
        await device.reset()
        assert mode(device) == (not writethrough)

    asyncio.run(run())


def test_choice_takes_effect_while_the_queue_runs() -> None:
    async def run() -> None:
        async with frontend() as front:
            await front.connect()
            await front.start()
            front.device.set_config(32, b"\0")
            await front.done(front.request(RequestType.OUT, send=bytes(512)))
            front.device.set_config(32, b"\1")
            await front.done(front.request(RequestType.OUT, send=bytes(512)))
            assert front.node.log == ["write 0+512 fua", "write 0+512"]

    asyncio.run(run())


def test_requests_in_flight_stay_what_they_were_when_the_cache_is_turned_off() -> None:
    """VIRTIO 1.3, 5.2.6.2: such a write is stored by the next flush. As in QEMU, there is none."""

    async def run() -> None:
        async with frontend() as front:
            await front.connect()
            await front.start()
            front.node.by_hand = True
            before = front.request(RequestType.OUT, send=bytes(512))
            await front.until(lambda: front.node.waiting)
            front.device.set_config(32, b"\0")
            after = front.request(RequestType.OUT, send=bytes(512))
            zeroes = front.request(RequestType.WRITE_ZEROES, send=range_segments([(0, 512)]))
            await front.until(lambda: len(front.node.waiting) == 3)
            front.node.finish_all()
            for request in (before, after, zeroes):
                assert await front.done(request) == 0
            assert front.node.log == ["write 0+512", "write 0+512 fua", "zero 0+512 fua"]

    asyncio.run(run())


def test_zeroes_are_stored_while_the_cache_is_off() -> None:
    async def run() -> None:
        async with frontend() as front:
            await front.connect()
            await front.start()
            for cache in (0, 1):
                front.device.set_config(32, bytes([cache]))
                for unmap in (0, 1):
                    payload = range_segments([(0, 512), (1024, 512)], unmap)
                    await front.done(front.request(RequestType.WRITE_ZEROES, send=payload))
            assert front.node.log == [
                f"zero {offset}+512{unmap}{fua}"
                for fua in (" fua", "")
                for unmap in ("", " unmap")
                for offset in (0, 1024)
            ]

    asyncio.run(run())


def test_zeroes_of_a_file_are_flushed_while_the_cache_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine could zero a part of the file, but leaves it to Python, which flushes."""
    path, size = tmp_path / "disk", 1 << 20
    path.write_bytes(b"\1" * size)
    flushed: list[bytes] = []

    async def flush(_node: FileNode) -> None:
        flushed.append(path.read_bytes())

    monkeypatch.setattr(FileNode, "flush", flush)

    async def run() -> None:
        graph = Graph()
        node = await graph.add(options(driver="file", node_name="disk", filename=str(path)))
        async with frontend(node, writethrough=True) as front:
            await front.connect()
            await front.start()
            payload = range_segments([(4096, 8192)])
            assert await front.done(front.request(RequestType.WRITE_ZEROES, send=payload)) == 0
            assert flushed[-1] == b"\1" * 4096 + bytes(8192) + b"\1" * (size - 12288)
        await front.block_backend.detach()
        await graph.close()

    asyncio.run(run())

# SPDX-License-Identifier: Apache-2.0
"""The life of an export's queues: start, enable, drain, stop, reset."""

from __future__ import annotations

import asyncio
import os
import select
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from tests.cli.process import PATIENCE
from tests.exports.support import frontend, make_backend
from tests.virtio_blk.support import UNSET, HandNode, eventfds, turns
from tests.virtqueue.support import vring_config
from vhostblk.virtio_blk.layout import RequestType, Status
from vhostblk.virtqueue.errors import SetupError

if TYPE_CHECKING:
    from vhostblk.vhost_user.backend import BackendChannel

pytestmark = pytest.mark.usefixtures("lane", "ring_kind")

FLUSH = RequestType.FLUSH


def test_kick_before_enable_waits() -> None:
    async def run() -> None:
        async with frontend() as front:
            await front.connect()
            await front.start(enable=False)
            request = front.request(FLUSH)
            await turns()
            assert request.status == UNSET
            front.device.set_vring_enabled(0, True)
            assert await front.done(request) == Status.OK

    asyncio.run(run())


def test_enabled_before_start() -> None:
    async def run() -> None:
        async with frontend() as front:
            await front.connect()
            front.device.set_vring_enabled(0, True)
            front.device.set_vring_enabled(0, True)
            await front.start(enable=False)
            assert await front.done(front.request(FLUSH)) == Status.OK

    asyncio.run(run())


def test_disabled_queue_stops_taking_requests() -> None:
    async def run() -> None:
        async with frontend() as front:
            await front.connect()
            await front.start()
            front.device.set_vring_enabled(0, False)
            front.device.set_vring_enabled(0, False)
            request = front.request(FLUSH)
            await turns()
            assert request.status == UNSET
            front.device.set_vring_enabled(0, True)
            assert await front.done(request) == Status.OK

    asyncio.run(run())


def test_stop_returns_where_to_go_on() -> None:
    async def run() -> None:
        async with frontend() as front:
            await front.connect()
            for _ in range(3):
                await front.start()
                await front.done(front.request(FLUSH))
                await turns()
                front.rings[0].poll()
                assert await front.device.stop_vring(0) == front.rings[0].base

    asyncio.run(run())


def test_stop_finishes_what_is_in_flight() -> None:
    async def run() -> None:
        node = HandNode()
        node.by_hand = True
        async with frontend(node) as front:
            await front.connect()
            await front.start()
            request = front.request(FLUSH)
            await front.until(lambda: node.waiting)
            stopping = asyncio.create_task(front.device.stop_vring(0))
            await turns()
            assert not stopping.done()
            node.finish()
            base = await stopping
            front.rings[0].poll()
            assert base == front.rings[0].base
            assert request.status == Status.OK
            assert os.eventfd_read(front.rings[0].call_fd) >= 1

    asyncio.run(run())


def test_drain_waits_and_holds_requests_back() -> None:
    async def run() -> None:
        node = HandNode()
        node.by_hand = True
        async with frontend(node) as front:
            front.block_backend.add_drain_listener(front.device)
            await front.connect()
            await front.start()
            first = front.request(FLUSH)
            await front.until(lambda: node.waiting)
            asyncio.get_running_loop().call_soon(node.finish)
            async with front.block_backend.drained():
                assert first.status == Status.OK
                second = front.request(FLUSH)
                await front.start(1)
                other = front.request(FLUSH, index=1)
                await turns()
                assert node.waiting == []
            node.by_hand = False
            assert await front.done(second) == await front.done(other) == Status.OK

    asyncio.run(run())


def test_front_end_may_leave_while_drained() -> None:
    async def run() -> None:
        async with frontend() as front:
            front.block_backend.add_drain_listener(front.device)
            await front.connect()
            await front.start()
            async with front.block_backend.drained():
                await front.device.reset()
            await front.connect()
            await front.start()
            assert await front.done(front.request(FLUSH)) == Status.OK

    asyncio.run(run())


@pytest.mark.parametrize("times", [1, 3])
def test_reset_finishes_requests_and_leaves_nothing(times: int) -> None:
    async def run() -> None:
        node = HandNode()
        async with frontend(node) as front:
            await front.connect()
            await front.start()  # which starts the iothread, with descriptors of its own
            await front.device.reset()
            for _ in range(times):
                before = eventfds()
                node.by_hand = True
                await front.connect()
                front.device.set_vring_err(0, os.eventfd(0))
                front.device.set_vring_err(1, os.eventfd(0))
                await front.start(0)
                await front.start(1)
                request = front.request(FLUSH)
                await front.until(lambda: node.waiting)
                leaving = asyncio.create_task(front.device.reset())
                await turns()
                assert not leaving.done()
                node.finish_all()
                await leaving
                assert request.status == Status.OK
                assert eventfds() <= before
                assert front.device.queues.memory.regions == ()
                for ring in front.rings:
                    ring.poll()

    asyncio.run(run())


def test_queues_begin_disabled_after_a_reset() -> None:
    async def run() -> None:
        async with frontend() as front:
            await front.connect()
            await front.start()
            await front.device.reset()
            await front.connect()
            await front.start(enable=False)
            request = front.request(FLUSH)
            await turns()
            assert request.status == UNSET

    asyncio.run(run())


def test_kick_descriptor_that_is_no_eventfd_is_refused() -> None:
    async def run() -> None:
        async with frontend() as front:
            await front.connect()
            read_end, write_end = os.pipe()
            config = vring_config(front.rings[0], front.memory)
            with pytest.raises(SetupError, match="kick descriptor is not an eventfd"):
                await front.device.start_vring(config, read_end)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(read_end)
            os.close(write_end)

    asyncio.run(run())


@pytest.mark.parametrize("purpose", ["call", "err"])
def test_other_descriptors_that_are_no_eventfds_are_refused(purpose: str) -> None:
    device = make_backend()
    read_end, write_end = os.pipe()
    with pytest.raises(SetupError, match="not an eventfd"):
        getattr(device, f"set_vring_{purpose}")(0, read_end)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read_end)
    os.close(write_end)


def test_ring_outside_memory_is_refused_and_the_kick_descriptor_closed() -> None:
    async def run() -> None:
        async with frontend() as front:
            kick = os.eventfd(0)
            config = vring_config(front.rings[0], front.memory)
            with pytest.raises(SetupError, match="not in guest memory"):
                await front.device.start_vring(config, kick)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(kick)

    asyncio.run(run())


def test_call_descriptor_is_replaced_and_the_old_one_closed() -> None:
    async def run() -> None:
        async with frontend() as front:
            await front.connect()
            await front.start()
            before, new = eventfds(), os.eventfd(0)
            front.device.set_vring_call(0, os.dup(new))
            assert select.select([new], [], [], PATIENCE)[0]
            assert len(eventfds() - {new}) == len(before)
            front.device.set_vring_call(0, None)
            assert await front.done(front.request(FLUSH)) == Status.OK
            os.close(new)

    asyncio.run(run())


@pytest.mark.parametrize("purpose", ["call", "err"])
def test_descriptor_that_can_not_be_used_is_closed(
    purpose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue keeps the one that it has."""

    def refuse(_index: int, _fd: int | None) -> None:
        raise SetupError("queue 0: Too many open files")

    async def run() -> None:
        async with frontend() as f:
            before = eventfds()
            monkeypatch.setattr(f.device.queues, f"set_{purpose}", refuse)
            with pytest.raises(SetupError, match="Too many open files"):
                getattr(f.device, f"set_vring_{purpose}")(0, os.eventfd(0))
            assert eventfds() == before

    asyncio.run(run())


def test_broken_ring_signals_the_error_descriptor(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with frontend() as front:
            await front.connect()
            error = os.eventfd(0)
            front.device.set_vring_err(0, os.dup(error))
            await front.start(0)
            await front.start(1)
            front.rings[0].make_available(77)
            front.rings[0].kick(force=True)
            await front.until(lambda: select.select([error], [], [], 0)[0])
            assert await front.done(front.request(FLUSH, index=1)) == Status.OK
            os.close(error)

    asyncio.run(run())
    assert "export 'e': queue 0 is broken: " in caplog.text


class Channel:
    """Counts what a front-end is told."""

    told = 0

    def config_changed(self) -> None:
        self.told += 1


def test_other_limits_of_a_changed_graph_are_told_to_the_front_end() -> None:
    node = HandNode()
    device, channel = make_backend(node), Channel()
    device.set_channel(channel)

    def drain() -> int:
        device.drained_begin()
        device.drained_end()
        return channel.told

    assert drain() == 0  # nothing has been read
    before = device.get_config(0, 60)
    assert drain() == 0
    node.limits = replace(node.limits, discard_granularity=65536)
    assert drain() == 1
    assert drain() == 1
    assert device.get_config(0, 60) != before
    assert drain() == 1


def test_resize_is_told_to_the_front_end() -> None:
    device, channel = make_backend(), Channel()
    typed: BackendChannel = channel
    device.resized()
    device.set_channel(typed)
    device.resized()
    assert channel.told == 1

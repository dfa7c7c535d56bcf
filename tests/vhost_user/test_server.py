# SPDX-License-Identifier: Apache-2.0
"""The server on a real socket, with a backend that does nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.descriptors import open_fds
from tests.frontend.connection import (
    Connection,
    ConnectionClosedError,
    RequestFailedError,
    make_eventfd,
    receive_request,
    send_fds_split,
)
from tests.frontend.loop_thread import LoopThread
from tests.frontend.memory import Memory
from tests.vhost_user.fake import FakeBackend
from vhostblk.net.listener import UnixAddress
from vhostblk.vhost_user import server as server_module
from vhostblk.vhost_user.codec import encode_request
from vhostblk.vhost_user.errors import VhostUserError
from vhostblk.vhost_user.layout import (
    F_PROTOCOL_FEATURES,
    F_VERSION_1,
    HEADER,
    U64,
    VRING_STATE,
    BackendRequest,
    ProtocolFeature,
    Request,
)
from vhostblk.vhost_user.server import VhostUserServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vhostblk.vhost_user.carried import Carried

FEATURES = F_VERSION_1 | F_PROTOCOL_FEATURES


class Running:
    """A server that runs in another thread."""

    def __init__(self, loop: LoopThread, path: Path, backend: FakeBackend) -> None:
        self.loop = loop
        self.path = path
        self.backend = backend
        self.server = VhostUserServer(UnixAddress(str(path)), backend, "test")
        #: The connection of a front-end whose session has moved; see `moved`.
        self.connection: Connection

    def connect(self) -> Connection:
        return Connection.connect(self.path)

    def negotiated(self) -> Connection:
        connection = self.connect()
        connection.negotiate(FEATURES)
        return connection

    def count_fds(self) -> int:
        """Count this process's descriptors while one front-end is connected."""
        with self.connect() as connection:
            connection.sync()
            return len(open_fds())

    def wait_reset(self) -> None:
        """Return when the server is done with all front-ends that have left."""
        with self.connect() as connection:
            connection.sync()


@contextmanager
def run_server(path: Path, backend: FakeBackend) -> Iterator[Running]:
    with LoopThread() as loop:
        running = Running(loop, path, backend)
        loop.run(running.server.start())
        try:
            yield running
        finally:
            loop.run(running.server.stop())


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with run_server(tmp_path / "s", FakeBackend()) as running:
        yield running


async def turns() -> None:
    """Let the loop do what it can do at once."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_messages_wait_until_the_backend_is_prepared(running: Running) -> None:
    running.backend.prepared.clear()
    with running.connect() as connection:
        connection.send(Request.GET_FEATURES)
        running.loop.run(running.backend.preparing.wait())
        running.loop.run(turns())
        connection.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.socket.recv(1)
        connection.socket.settimeout(30)
        running.loop.loop.call_soon_threadsafe(running.backend.prepared.set)
        assert connection.receive_reply(Request.GET_FEATURES)


def conversation(connection: Connection, memory: Memory) -> None:
    """Say everything that a front-end says in normal life."""
    connection.negotiate(FEATURES)
    assert connection.get_queue_num() == 2
    connection.get_config(0, 60)
    connection.set_mem_table(memory.describe())
    eventfd = make_eventfd()
    for index in range(2):
        connection.set_vring_num(index, 128)
        connection.set_vring_base(index, 0)
        connection.set_vring_addr(index, 0x1000, 0x2000, 0x3000)
        connection.set_vring_call(index, eventfd)
        connection.set_vring_err(index, eventfd)
        connection.set_vring_kick(index, eventfd)
        connection.set_vring_enable(index, True)
    os.close(eventfd)
    for index in range(2):
        assert connection.get_vring_base(index) == 7


def test_a_whole_conversation_and_the_reset_after_it(running: Running) -> None:
    memory = Memory()
    with running.connect() as connection:
        conversation(connection, memory)
    running.wait_reset()
    names = [call[0] for call in running.backend.take_calls()]
    assert names.count("start_vring") == names.count("stop_vring") == 2
    assert names[-1] == "reset"
    memory.close()


def test_a_hundred_front_ends_one_after_the_other(running: Running) -> None:
    memory = Memory(((0, 1 << 20),))
    before = running.count_fds()
    for _ in range(100):
        with running.connect() as connection:
            conversation(connection, memory)
    assert running.count_fds() <= before
    assert [call[0] for call in running.backend.take_calls()].count("reset") >= 101
    memory.close()


def test_the_second_front_end_waits_until_the_first_has_left(running: Running) -> None:
    first = running.negotiated()
    second = running.connect()
    second.send(Request.GET_QUEUE_NUM)
    assert first.get_queue_num() == 2
    second.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        second.socket.recv(1)
    second.socket.settimeout(30)
    first.close()
    assert U64.unpack(second.receive_reply(Request.GET_QUEUE_NUM)) == (2,)
    second.close()


def test_a_waiting_front_end_that_leaves_is_forgotten(running: Running) -> None:
    first = running.negotiated()
    for _ in range(5):
        running.connect().close()
    first.close()
    running.wait_reset()


def test_messages_sent_byte_by_byte(running: Running) -> None:
    with running.negotiated() as connection:
        eventfd = make_eventfd()
        send_fds_split(connection, encode_request(Request.SET_VRING_CALL, U64.pack(1)), [eventfd])
        connection.sync()
        os.close(eventfd)
    assert ("set_vring_call", 1, True) in running.backend.calls


def test_many_messages_in_one_write(running: Running) -> None:
    with running.connect() as connection:
        connection.send_raw(encode_request(Request.GET_QUEUE_NUM) * 1000)
        for _ in range(1000):
            assert U64.unpack(connection.receive_reply(Request.GET_QUEUE_NUM)) == (2,)


def test_messages_with_descriptors_back_to_back_keep_their_own(running: Running) -> None:
    with running.negotiated() as connection:
        eventfd = make_eventfd()
        call = encode_request(Request.SET_VRING_CALL, U64.pack(0))
        for _ in range(20):
            connection.send_raw(encode_request(Request.SET_OWNER))
            connection.send_raw(call, [eventfd])
        connection.sync()
        os.close(eventfd)
    assert running.backend.calls.count(("set_vring_call", 0, True)) == 20


def test_no_descriptor_leaks_over_ten_thousand_messages(running: Running) -> None:
    with running.connect() as connection:
        connection.set_protocol_features(ProtocolFeature.MQ)
        connection.set_features(FEATURES)
        connection.sync()
        eventfd = make_eventfd()
        before = open_fds()
        for number in range(2500):
            connection.set_vring_call(number % 2, eventfd)
            connection.set_vring_err(number % 2, eventfd)
            connection.send(Request.SET_CONFIG, b"bad", [eventfd] * 8)
            connection.send(Request.SET_VRING_CALL, U64.pack(1 | 1 << 8), [eventfd])
        connection.set_vring_call(0, None)
        connection.sync()
        assert open_fds() <= before
        os.close(eventfd)


def test_too_many_descriptors_disconnect(running: Running) -> None:
    before = running.count_fds()
    with running.connect() as connection:
        eventfds = [make_eventfd() for _ in range(9)]
        connection.send(Request.SET_OWNER, fds=eventfds)
        connection.wait_closed()
        for eventfd in eventfds:
            os.close(eventfd)
    assert running.count_fds() <= before


def stream_of_a_conversation() -> list[tuple[bytes, bool]]:
    """Messages, and whether a descriptor goes with them."""
    return [
        (encode_request(Request.SET_OWNER), False),
        (encode_request(Request.SET_FEATURES, U64.pack(FEATURES)), False),
        (encode_request(Request.SET_VRING_NUM, VRING_STATE.pack(0, 128)), False),
        (encode_request(Request.SET_VRING_CALL, U64.pack(0)), True),
        (encode_request(Request.GET_VRING_BASE, VRING_STATE.pack(0, 0)), False),
    ]


def test_disconnecting_at_every_byte(running: Running) -> None:
    messages = stream_of_a_conversation()
    total = sum(len(data) for data, _ in messages)
    eventfd = make_eventfd()
    before = running.count_fds()
    for cut in range(total):
        with running.connect() as connection:
            left = cut
            for data, with_fd in messages:
                part = data[:left]
                left -= len(part)
                if part:
                    connection.send_raw(part, [eventfd] if with_fd else [])
    assert running.count_fds() <= before
    os.close(eventfd)


def test_hostile_messages_cost_only_their_own_connection(running: Running) -> None:
    for data in (
        HEADER.pack(1, 0, 0),
        HEADER.pack(1, 5, 0),
        HEADER.pack(1, 1, 1 << 31),
        HEADER.pack(77, 1, 0),
        encode_request(Request.NONE),
        encode_request(Request.SET_VRING_NUM, VRING_STATE.pack(9, 9)),
        os.urandom(64),
    ):
        with running.connect() as connection:
            connection.send_raw(data)
            connection.socket.shutdown(socket.SHUT_WR)
            connection.wait_closed()
    running.wait_reset()


def test_what_a_driver_lacks_is_logged(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    running.backend.demanding = True
    with running.connect() as connection:
        connection.negotiate(F_VERSION_1)
        connection.set_status(0xB)
        assert connection.get_status() == 0x3
    line = "export 'test': SET_STATUS: FEATURES_OK refused: FEATURE is missing"
    assert caplog.messages == [line]


def test_reasons_are_logged_once_and_not_without_limit(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with running.negotiated() as connection:
        for _ in range(100):
            with pytest.raises(RequestFailedError):
                connection.set_vring_num(0, 3)
    assert caplog.messages[0] == "export 'test': SET_VRING_NUM: vring 0: invalid size 3"
    assert len(caplog.messages) < 20


def test_a_failing_backend_disconnects_and_the_server_lives_on(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.backend.failing["set_vring_enabled"] = ZeroDivisionError()
    with running.negotiated() as connection:
        with pytest.raises(ConnectionClosedError):
            connection.set_vring_enable(0, True)
    assert "internal error" in caplog.text
    running.backend.failing["reset"] = ZeroDivisionError()
    running.wait_reset()
    running.wait_reset()
    assert "reset failed" in caplog.text


def test_config_change_reaches_the_front_end(running: Running) -> None:
    with running.negotiated() as connection:
        with connection.open_channel() as channel:
            assert running.backend.channel is not None
            running.loop.loop.call_soon_threadsafe(running.backend.channel.config_changed)
            assert receive_request(channel) == (BackendRequest.CONFIG_CHANGE_MSG, b"")
            connection.close()
            assert channel.recv(1) == b""
    running.wait_reset()
    assert running.backend.channel is None


def test_a_front_end_that_does_not_read_replies_stalls_only_itself(running: Running) -> None:
    connection = running.connect()
    connection.socket.setblocking(False)
    message, sent = encode_request(Request.GET_FEATURES), 0

    def full() -> bool:
        """Send as much as there is room for; return whether there was none at all."""
        nonlocal sent
        before = sent
        with suppress(BlockingIOError):
            while sent < 1_000_000 * len(message):
                sent += connection.socket.send((message * 1000)[sent % len(message) :])
        return sent == before

    while not full():
        running.loop.run(turns())
    assert sent < 1_000_000 * len(message), "the server goes on reading"
    running.loop.run(running.server.stop())
    connection.close()


def test_a_talkative_front_end_does_not_keep_the_loop(running: Running) -> None:
    begun, enough = threading.Event(), threading.Event()

    def talk() -> None:
        with running.connect() as connection:
            while not enough.is_set():
                connection.send_raw(encode_request(Request.SET_OWNER) * 100)
                begun.set()

    async def ten_turns() -> None:
        for _ in range(10):
            await asyncio.sleep(0.001)

    talker = threading.Thread(target=talk)
    talker.start()
    try:
        assert begun.wait(30)
        running.loop.run(ten_turns())
    finally:
        enough.set()
        talker.join()


def test_a_storm_of_connections_does_not_keep_the_loop(running: Running) -> None:
    counted = 0

    async def count_turns() -> None:
        nonlocal counted
        while True:
            counted += 1
            await asyncio.sleep(0)

    counting = asyncio.run_coroutine_threadsafe(count_turns(), running.loop.loop)
    for _ in range(200):
        running.connect().close()
    running.wait_reset()
    counting.cancel()
    assert counted >= 200


@pytest.mark.parametrize("connected", [False, True])
def test_stop_disconnects_resets_and_removes_the_socket(tmp_path: Path, connected: bool) -> None:
    backend = FakeBackend()
    with run_server(tmp_path / "s", backend) as running:
        connection = running.negotiated() if connected else None
        running.loop.run(running.server.stop())
        if connection is not None:
            connection.wait_closed()
            connection.close()
            assert backend.calls[-1] == ("reset",)
        assert not running.path.exists()
        assert not running.server.running
        running.loop.run(running.server.start())
        running.wait_reset()


def test_stop_waits_for_the_backend(tmp_path: Path) -> None:
    class SlowBackend(FakeBackend):
        def __init__(self) -> None:
            super().__init__()
            self.entered = threading.Event()
            self.gate: asyncio.Event | None = None

        async def stop_vring(self, index: int) -> int:
            self.gate = asyncio.Event()
            self.entered.set()
            await self.gate.wait()
            return await super().stop_vring(index)

    backend = SlowBackend()
    with run_server(tmp_path / "s", backend) as running:
        with running.negotiated() as connection:
            connection.set_vring_num(0, 2)
            connection.set_vring_addr(0, 0, 0, 0)
            connection.set_vring_kick(0, None)
            connection.send(Request.GET_VRING_BASE, VRING_STATE.pack(0, 0))
            assert backend.entered.wait(30)
            stopping = asyncio.run_coroutine_threadsafe(running.server.stop(), running.loop.loop)
            with pytest.raises(TimeoutError):
                stopping.result(0.05)
            assert backend.gate is not None
            running.loop.loop.call_soon_threadsafe(backend.gate.set)
            stopping.result(30)
        assert [call[0] for call in backend.calls[-2:]] == ["stop_vring", "reset"]


def test_what_the_backend_waits_for_is_abandoned_at_the_end(tmp_path: Path) -> None:
    class WaitingBackend(FakeBackend):
        """Stops no vring before `abandon`, as if requests were held by a drained section."""

        entered = threading.Event()

        def abandon(self) -> None:
            super().abandon()
            if self.entered.is_set():
                self.abandoned.set()

        async def stop_vring(self, index: int) -> int:
            self.abandoned = asyncio.Event()
            self.entered.set()
            await self.abandoned.wait()
            raise VhostUserError("requests are not done")

    backend = WaitingBackend()
    with run_server(tmp_path / "s", backend) as running:
        with running.negotiated() as connection:
            connection.set_vring_num(0, 2)
            connection.set_vring_addr(0, 0, 0, 0)
            connection.set_vring_kick(0, None)
            connection.send(Request.GET_VRING_BASE, VRING_STATE.pack(0, 0))
            assert backend.entered.wait(30)
            running.loop.run(running.server.stop())
            connection.wait_closed()  # it gets no base


@contextmanager
def moved(path: Path) -> Iterator[tuple[LoopThread, Running, Carried]]:
    """Suspend a server; yield what it hands over, and another server."""
    with LoopThread() as loop:
        former = Running(loop, path, FakeBackend())
        loop.run(former.server.start(movable=True))
        with former.negotiated() as connection:
            former.connection = connection
            carried = loop.run(former.server.suspend())
            after = Running(loop, path, FakeBackend())
            after.connection = connection
            yield loop, after, carried


def test_a_front_end_is_not_listened_to_before_the_other_process_has_given_up(
    tmp_path: Path,
) -> None:
    with moved(tmp_path / "s") as (loop, running, carried):
        loop.run(running.server.start(carried, movable=True))
        with running.connect() as waiting:
            waiting.send(Request.GET_FEATURES)
            for connection in (running.connection, waiting):
                connection.send(Request.GET_QUEUE_NUM)
                loop.run(turns())
                connection.socket.setblocking(False)
                with pytest.raises(BlockingIOError):
                    connection.socket.recv(1)
                connection.socket.settimeout(30)
            loop.loop.call_soon_threadsafe(running.server.resume)
            assert running.connection.receive_reply(Request.GET_QUEUE_NUM)
            running.connection.close()
            assert waiting.receive_reply(Request.GET_FEATURES)
        loop.run(running.server.stop())


def test_a_server_that_was_not_resumed_can_be_stopped(tmp_path: Path) -> None:
    with moved(tmp_path / "s") as (loop, running, carried):
        loop.run(running.server.start(carried, movable=True))
        loop.run(running.server.stop())
        running.connection.wait_closed()


def test_a_backend_may_want_no_more_of_a_front_end_before_it_is_resumed(tmp_path: Path) -> None:
    with moved(tmp_path / "s") as (loop, running, carried):
        loop.run(running.server.start(carried, movable=True))
        assert running.backend.disconnect is not None
        loop.loop.call_soon_threadsafe(running.backend.disconnect, "it has gone mad")
        running.connection.wait_closed()
        loop.loop.call_soon_threadsafe(running.server.resume)
        with running.negotiated() as connection:
            assert connection.get_queue_num() == 2
        loop.run(running.server.stop())


@pytest.mark.parametrize("required", [True, False])
def test_what_can_not_be_said_again(
    tmp_path: Path, required: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that takes over fails; one that resumes disconnects only this front-end."""
    with moved(tmp_path / "s") as (loop, running, carried):
        running.backend.failing["set_features"] = VhostUserError("not today")
        carried.required = required
        reason = "SET_FEATURES: not today"
        if required:
            with pytest.raises(VhostUserError, match=f"export 'test': {reason}"):
                loop.run(running.server.start(carried, movable=True))
            running.connection.wait_closed()
            return
        loop.run(running.server.start(carried, movable=True))
        running.connection.wait_closed()
        assert f"export 'test': front-end disconnected: {reason}" in caplog.text
        running.backend.failing.clear()
        loop.loop.call_soon_threadsafe(running.server.resume)
        with running.negotiated() as connection:
            assert connection.get_queue_num() == 2
        loop.run(running.server.stop())


def test_other_configuration_is_told_to_a_front_end_that_has_read_it(tmp_path: Path) -> None:
    with LoopThread() as loop:
        former = Running(loop, tmp_path / "s", FakeBackend())
        loop.run(former.server.start(movable=True))
        with former.negotiated() as connection, connection.open_channel() as channel:
            connection.get_config(0, 4)
            for config in (former.backend.config, bytes(60)):
                carried = loop.run(former.server.suspend())
                former = Running(loop, tmp_path / "s", FakeBackend())
                former.backend.config = config
                loop.run(former.server.start(carried, movable=True))
                loop.loop.call_soon_threadsafe(former.server.resume)
                connection.sync()
                if not any(config):
                    assert receive_request(channel) == (BackendRequest.CONFIG_CHANGE_MSG, b"")
                channel.setblocking(False)
                with pytest.raises(BlockingIOError):
                    channel.recv(1)
                channel.settimeout(30)
        loop.run(former.server.stop())


def test_session_stays_while_memory_arrives(tmp_path: Path) -> None:
    with LoopThread() as loop:
        running = Running(loop, tmp_path / "s", FakeBackend())
        loop.run(running.server.start(movable=True))
        with running.negotiated() as connection:
            os.close(connection.postcopy_advise())
            with pytest.raises(VhostUserError, match="export 'test': a post-copy migration"):
                loop.run(running.server.suspend())
            connection.sync()
            connection.postcopy_end()
            carried = loop.run(running.server.suspend())
            carried.close()
            connection.wait_closed()


@pytest.mark.parametrize("sent", [b"", b"\1", HEADER.pack(Request.SET_OWNER, 1, 8) + b"\0"])
def test_a_front_end_that_stalls_has_to_go(
    running: Running, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(server_module, "PATIENCE", 0.05)
    with running.connect() as stalled, running.connect() as waiting:
        stalled.send_raw(sent)
        stalled.wait_closed()
        waiting.get_features()


def test_a_silent_front_end_may_stay(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "PATIENCE", 0.05)
    with running.connect() as connection:
        connection.get_features()
        running.loop.run(asyncio.sleep(0.1))  # timers of this loop that end earlier have ended
        connection.get_features()

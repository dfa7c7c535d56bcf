# SPDX-License-Identifier: Apache-2.0
"""The server in this process: threads, limits, time-outs, and the end."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.process import wait_until
from tests.descriptors import open_fds
from tests.pr.client import PATIENCE, Client, Watched, parameters, reserve_in, reserve_out
from vhostblk.pr.compiled import connection_type
from vhostblk.pr.server import Server
from vhostblk.reservations.wire import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vhostblk.reservations.wire import Request

pytestmark = pytest.mark.usefixtures("lane")


def echo(request: Request) -> Reply:
    return Reply(0, b"", request.cdb + request.parameters)


class Running:
    """A server in a thread."""

    def __init__(self, server: Server, path: Path) -> None:
        self.server = server
        self.path = path
        self.is_complete: bool | None = None

    def client(self, greet: bool = True) -> Client:
        return Client(self.path, greet)


@contextmanager
def serving(
    directory: Path, execute: Callable[[Request], Reply] = echo, grace: float = 20, **limits: Any
) -> Iterator[Running]:
    listener = socket.socket(socket.AF_UNIX)
    path = directory / "s.sock"
    listener.bind(str(path))
    listener.listen(128)
    listener.setblocking(False)
    server = Server(listener, execute, connection_type(1000), **limits)
    running = Running(server, path)

    def serve() -> None:
        running.is_complete = server.serve(grace)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield running
    finally:
        server.stop()
        thread.join(PATIENCE)
        listener.close()
        assert not thread.is_alive()
        if running.is_complete:
            server.close()


class Gate:
    """Commands that wait until a test lets them go on."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.begun = 0
        self.go = threading.Event()

    def execute(self, request: Request) -> Reply:
        with self.lock:
            self.begun += 1
        assert self.go.wait(PATIENCE)
        return echo(request)


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open("/dev/null", os.O_RDWR)
    yield fd
    os.close(fd)


def test_one_command_after_the_other(tmp_path: Path, null: int) -> None:
    with serving(tmp_path) as running, running.client() as client:
        for length in (0, 5, 16, 8192):
            cdb = reserve_in(length=length)
            assert client.ask(cdb, null) == (0, bytes(96), cdb[:length])
        out = reserve_out(length=24)
        assert client.ask(out, null, parameters(1, 2)) == (
            0,
            bytes(96),
            (out + parameters(1, 2))[:24],
        )


def test_commands_of_many_clients_at_once(tmp_path: Path, null: int) -> None:
    """Each waits for all others: as many commands as clients are in flight."""
    gate = Gate()
    with serving(tmp_path, gate.execute) as running, ExitStack() as stack:
        clients = [stack.enter_context(running.client()) for _ in range(64)]
        for client in clients:
            client.send(reserve_in(length=16), [null])
        wait_until(lambda: gate.begun == 64)
        with running.client() as another:
            another.send(reserve_in(length=16), [null])
            wait_until(lambda: gate.begun == 65)
            gate.go.set()
            assert another.answer().data == reserve_in(length=16)
        for client in clients:
            assert client.answer().data == reserve_in(length=16)


def test_requests_that_are_sent_ahead(tmp_path: Path, null: int) -> None:
    """Each has its own descriptor, and gets its own reply."""
    with serving(tmp_path) as running, running.client() as client:
        cdbs = [reserve_in(action, length=16) for action in range(20)]
        for cdb in cdbs:
            client.send(cdb, [null])
        assert [client.answer().data for _ in cdbs] == cdbs


def test_the_descriptor_is_closed_before_the_reply(tmp_path: Path) -> None:
    with serving(tmp_path) as running, running.client() as client:
        watched = Watched()
        client.ask(reserve_in(), watched.fd)
        watched.wait_closed()


def test_a_limit_of_all_connections(
    tmp_path: Path, null: int, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path, max_connections=3) as running, ExitStack() as stack:
        clients = [stack.enter_context(running.client()) for _ in range(3)]
        with running.client(greet=False) as another:
            assert another.receive(4) == bytes(4)
            assert another.is_closed()
        for client in clients:
            client.ask(reserve_in(), null)
        clients[0].socket.close()
        wait_until(lambda: len(running.server._connections) == 2)
        with running.client() as another:
            another.ask(reserve_in(), null)
    assert "connection refused: there are 3 connections" in caplog.text


def test_a_limit_of_one_process(
    tmp_path: Path, null: int, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path, max_of_a_process=2) as running, ExitStack() as stack:
        clients = [stack.enter_context(running.client()) for _ in range(2)]
        with running.client(greet=False) as another:
            assert another.receive(4) == bytes(4)
            assert another.is_closed()
        for client in clients:
            client.ask(reserve_in(), null)
    assert f"pid {os.getpid()}: connection refused: that process has 2" in caplog.text


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        bytes(2),
        bytes(4) + b"\x5e",
        bytes(4) + reserve_out(length=24),
        bytes(4) + reserve_out(length=24) + b"abc",
    ],
)
def test_a_client_that_does_not_finish_its_message(tmp_path: Path, begun: bytes) -> None:
    watched = Watched()
    with serving(tmp_path, patience=0.1) as running, running.client(greet=False) as client:
        assert client.receive(4) == bytes(4)
        client.send(begun[:4]) if begun else None
        if len(begun) > 4:
            client.send(begun[4:], [watched.fd])
        assert client.is_closed()
    watched.wait_closed()


def test_a_slow_client_has_no_more_time(tmp_path: Path) -> None:
    """A byte now and then is no message."""
    with serving(tmp_path, patience=0.3) as running, running.client() as client:
        began = time.monotonic()
        with pytest.raises(OSError, match=r"Broken pipe|reset"):  # noqa: PT012
            while time.monotonic() < began + PATIENCE:
                client.send(b"\x5e")
                time.sleep(0.05)
                assert time.monotonic() - began < PATIENCE / 2


def test_an_idle_client_stays(tmp_path: Path, null: int) -> None:
    with serving(tmp_path, patience=0.05) as running, running.client() as client:
        client.ask(reserve_in(), null)
        with running.client(greet=False) as other:  # the clock goes
            assert other.receive(4) == bytes(4)
            assert other.is_closed()
        client.ask(reserve_in(), null)


def test_a_command_may_take_longer_than_a_message(tmp_path: Path, null: int) -> None:
    gate = Gate()
    with serving(tmp_path, gate.execute, patience=0.05) as running, running.client() as client:
        client.send(reserve_in(length=16), [null])
        wait_until(lambda: gate.begun == 1)
        with running.client(greet=False) as other:
            assert other.receive(4) == bytes(4)
            assert other.is_closed()
        gate.go.set()
        assert client.answer().data == reserve_in(length=16)


def test_a_client_that_reads_no_replies(tmp_path: Path, null: int) -> None:
    """It is not served further, and closed in time; meanwhile others are served."""

    def much(request: Request) -> Reply:
        return Reply(0, b"", bytes(8192))

    with serving(tmp_path, much, patience=0.5) as running, running.client() as client:
        client.socket.setblocking(False)
        deadline = time.monotonic() + PATIENCE
        with pytest.raises(OSError, match=r"Broken pipe|reset"):  # noqa: PT012
            while time.monotonic() < deadline:
                try:
                    client.send(reserve_in(), [null])
                except BlockingIOError:
                    with running.client() as other:
                        other.ask(reserve_in(), null)


def test_the_end_waits_for_commands(tmp_path: Path, null: int) -> None:
    gate = Gate()
    with ExitStack() as stack:
        running = stack.enter_context(serving(tmp_path, gate.execute))
        idle = stack.enter_context(running.client())
        client = stack.enter_context(running.client())
        client.send(reserve_in(length=16), [null])
        wait_until(lambda: gate.begun == 1)
        running.server.stop()
        assert idle.is_closed()
        assert running.is_complete is None
        gate.go.set()
        assert client.answer().data == reserve_in(length=16)
        assert client.is_closed()
        wait_until(lambda: running.is_complete is True)


def test_the_end_does_not_wait_for_ever(tmp_path: Path, null: int) -> None:
    gate = Gate()
    with serving(tmp_path, gate.execute, grace=0.1) as running, running.client() as client:
        client.send(reserve_in(), [null])
        wait_until(lambda: gate.begun == 1)
        running.server.stop()
        wait_until(lambda: running.is_complete is False)
        gate.go.set()


def test_a_signal_wakes_the_thread_that_waits(tmp_path: Path) -> None:
    """The signal's handler may have run just before that thread began to wait."""
    with serving(tmp_path) as running:
        with running.client():
            pass  # it waits by now, or is about to
        running.server._is_stopping = True
        os.write(running.server._waker, b"\0")
        wait_until(lambda: running.is_complete is True)


def test_a_client_that_dies_during_its_command(tmp_path: Path) -> None:
    gate, watched = Gate(), Watched()
    with serving(tmp_path, gate.execute) as running:
        with running.client() as client:
            client.send(reserve_in(), [watched.fd])
            wait_until(lambda: gate.begun == 1)
        gate.go.set()
        watched.wait_closed()
        wait_until(lambda: not running.server._connections)


def test_a_half_closed_connection_gets_its_reply(tmp_path: Path, null: int) -> None:
    with serving(tmp_path) as running, running.client() as client:
        client.send(reserve_in(length=16), [null])
        client.socket.shutdown(socket.SHUT_WR)
        assert client.answer().data == reserve_in(length=16)
        assert client.is_closed()


def test_an_error_of_our_own_costs_one_connection(
    tmp_path: Path, null: int, caplog: pytest.LogCaptureFixture
) -> None:
    def execute(request: Request) -> Reply:
        if request.cdb[1] == 9:
            raise ZeroDivisionError
        return echo(request)

    watched = Watched()
    with serving(tmp_path, execute) as running, running.client() as client:
        with running.client() as other:
            other.send(reserve_in(9), [watched.fd])
            assert other.is_closed()
        client.ask(reserve_in(), null)
    watched.wait_closed()
    assert "internal error" in caplog.text
    assert caplog.records[0].exc_info is not None


def test_threads_that_can_not_be_started(
    tmp_path: Path, null: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection is refused, and another one is served once there are threads again."""
    before = open_fds()
    with serving(tmp_path) as running, running.client() as client:
        client.ask(reserve_in(), null)

        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)
        with running.client(greet=False) as refused:
            assert refused.receive(4) == bytes(4)
            assert refused.is_closed()
        client.ask(reserve_in(), null)
        monkeypatch.undo()
        with running.client() as other:
            other.ask(reserve_in(), null)
    assert "connection refused: can't start new thread" in caplog.text
    wait_until(lambda: open_fds() <= before)


def test_a_client_that_reads_no_replies_does_not_hold_up_the_end(tmp_path: Path, null: int) -> None:
    def much(request: Request) -> Reply:
        return Reply(0, b"", bytes(8192))

    with serving(tmp_path, much) as running, running.client() as client:
        client.socket.setblocking(False)
        with pytest.raises(BlockingIOError):  # noqa: PT012
            while True:
                client.send(reserve_in(), [null])
        wait_until(lambda: any(each.is_stuck for each in running.server._connections.values()))
        running.server.stop()
        wait_until(lambda: running.is_complete is True)


def test_no_files_left_for_connections(
    tmp_path: Path, null: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vhostblk.pr.server._PAUSE", 0.05)
    with serving(tmp_path) as running:
        real = running.server._listener
        failures = [OSError(24, "Too many open files")] * 2

        class Failing:
            def fileno(self) -> int:
                return real.fileno()

            def accept(self) -> object:
                if failures:
                    raise failures.pop()
                return real.accept()

            def close(self) -> None:
                real.close()

        monkeypatch.setattr(running.server, "_listener", Failing())
        with running.client() as client:
            client.ask(reserve_in(), null)
    assert "can't accept connections: Too many open files" in caplog.text


def test_what_clients_cause_is_logged_now_and_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path) as running:
        for _ in range(50):
            with running.client() as client:
                client.send(b"\0" * 16)
                assert client.is_closed()
    assert 1 <= len(caplog.records) <= 8


def test_a_log_that_nobody_reads(tmp_path: Path, null: int) -> None:
    """One thread waits for the reader, and no client."""
    entered, go = threading.Event(), threading.Event()

    class Full(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            entered.set()
            assert go.wait(PATIENCE)

    handler = Full()
    log = logging.getLogger("vhostblk.pr.server")
    log.addHandler(handler)
    try:
        with serving(tmp_path) as running, ExitStack() as stack:
            stuck = stack.enter_context(running.client())
            stuck.send(b"\0" * 16)
            assert entered.wait(PATIENCE)
            for _ in range(10):
                with running.client() as client:
                    client.ask(reserve_in(), null)
                with running.client() as client:
                    client.send(b"\0" * 16)
                    assert client.is_closed()
            go.set()
            assert stuck.is_closed()
    finally:
        go.set()
        log.removeHandler(handler)


def test_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(tmp_path, quiet=True) as running, running.client() as client:
        client.send(b"\0" * 16)
        assert client.is_closed()
    assert not caplog.records


def test_nothing_is_left_open(tmp_path: Path, null: int) -> None:
    before = open_fds()
    with serving(tmp_path) as running:
        for _ in range(20):
            with running.client() as client:
                client.ask(reserve_in(), null)
                client.send(b"\x5e", [null])
    wait_until(lambda: open_fds() <= before)

# SPDX-License-Identifier: Apache-2.0
"""The client of a helper: what it sends, reconnecting, and helpers that do wrong."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.descriptors import open_fds
from tests.reservations.conftest import PATIENCE, helper
from vhostblk.reservations import client, codec
from vhostblk.reservations.client import ConnectError, HelperClient
from vhostblk.reservations.wire import Reply
from vhostblk.schema.reservations import PrInAction, PrOutAction

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path
    from typing import Any

    from vhostblk.reservations.wire import Request

READ = codec.command_in(PrInAction.READ_KEYS)
CLEAR, PARAMETERS = codec.command_out(PrOutAction.CLEAR, 1, 2, None)
FAILED = "check condition, sense b/08/00"


def echo(request: Request) -> Reply:
    return Reply(0, b"", request.cdb if request.cdb == READ else b"")


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "h.sock"


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open("/dev/null", os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture(autouse=True)
def _short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE", 0.01)


def connected(path: Path, changed: Callable[[], object] = lambda: None) -> HelperClient:
    made = HelperClient(str(path), changed)
    made.connect()
    return made


def test_commands(path: Path, null: int) -> None:
    async def main() -> None:
        made = connected(path)
        assert made.is_connected
        assert await made.run(null, READ, b"") == Reply(0, bytes(96), READ)
        assert await made.run(null, CLEAR, PARAMETERS) == Reply(0, bytes(96), b"")
        made.close()

    seen: list[Request] = []

    def execute(request: Request) -> Reply:
        seen.append(request)
        return echo(request)

    before = open_fds()
    with helper(path, execute):
        run(main)
    assert [(each.cdb, each.parameters) for each in seen] == [(READ, b""), (CLEAR, PARAMETERS)]
    assert open_fds() <= before


def test_commands_take_turns(path: Path, null: int) -> None:
    async def main() -> None:
        made = connected(path)
        replies = await asyncio.gather(*(made.run(null, READ, b"") for _ in range(50)))
        assert {reply.data for reply in replies} == {READ}
        made.close()

    with helper(path, echo):
        run(main)


def test_the_loop_goes_on_while_a_device_takes_its_time(path: Path, null: int) -> None:
    go = threading.Event()

    def slow(request: Request) -> Reply:
        assert go.wait(PATIENCE)
        return echo(request)

    async def main() -> None:
        made = connected(path)
        task = asyncio.create_task(made.run(null, READ, b""))
        await asyncio.sleep(0.01)
        assert not task.done()
        go.set()
        assert (await task).data == READ
        made.close()

    with helper(path, slow):
        run(main)


def test_it_connects_again(path: Path, null: int) -> None:
    """The helper is started anew between two commands; the second one finds it."""

    async def main() -> None:
        changes: list[bool] = []
        with helper(path, echo):
            made = connected(path, lambda: changes.append(made.is_connected))
            await made.run(null, READ, b"")
            assert not changes
        with helper(path, echo):
            assert (await made.run(null, READ, b"")).data == READ
            assert changes == [False, True]
            made.close()
        assert changes == [False, True]

    run(main)


def test_it_waits_for_a_helper_that_is_not_there_yet(path: Path, null: int) -> None:
    async def main() -> None:
        with helper(path, echo):
            made = connected(path)
        os.unlink(path)  # noqa: PTH108 (in a coroutine)
        task = asyncio.create_task(made.run(null, READ, b""))
        await asyncio.sleep(0.015)
        with helper(path, echo):
            assert (await task).data == READ
            made.close()

    run(main)


def test_it_gives_up(path: Path, null: int) -> None:
    async def main() -> None:
        changes: list[bool] = []
        with helper(path, echo):
            made = connected(path, lambda: changes.append(made.is_connected))
        os.unlink(path)  # noqa: PTH108 (in a coroutine)
        reply = await made.run(null, READ, b"")
        assert codec.describe_failure(reply) == FAILED
        assert (made.is_connected, changes) == (False, [False])

    run(main)


def test_another_path(path: Path, null: int, tmp_path: Path) -> None:
    async def main() -> None:
        with helper(path, echo):
            made = connected(path)
        made.path = str(tmp_path / "other.sock")
        with helper(tmp_path / "other.sock", echo):
            assert (await made.run(null, READ, b"")).data == READ
            made.close()

    run(main)


def test_a_command_that_is_given_up_spoils_no_other(path: Path, null: int) -> None:
    go = threading.Event()

    def slow(request: Request) -> Reply:
        if request.cdb == CLEAR:
            assert go.wait(PATIENCE)
        return echo(request)

    async def main() -> None:
        made = connected(path)
        task = asyncio.create_task(made.run(null, CLEAR, PARAMETERS))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not made.is_connected
        assert (await made.run(null, READ, b"")).data == READ
        go.set()
        made.close()

    with helper(path, slow):
        run(main)


def test_closing_while_a_command_runs(path: Path, null: int) -> None:
    go = threading.Event()

    def slow(request: Request) -> Reply:
        assert go.wait(PATIENCE)
        return echo(request)

    async def main() -> None:
        made = connected(path)
        task = asyncio.create_task(made.run(null, READ, b""))
        await asyncio.sleep(0.02)
        made.close()
        assert codec.describe_failure(await task) == FAILED
        assert not made.is_connected
        go.set()

    before = open_fds()
    with helper(path, slow):
        run(main)
    assert open_fds() <= before


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none", "No such file or directory"),
        ("", "Connection refused"),
        ("file", "Connection refused"),
        (".", "Connection refused"),
    ],
)
def test_nobody_to_connect_to(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    wanted = f"{tmp_path}/{name}" if name else ""
    before = open_fds()
    with pytest.raises(ConnectError) as caught:
        HelperClient(wanted).connect()
    assert str(caught.value).startswith(f"Failed to connect to '{wanted}': ")
    assert reason in str(caught.value)
    assert open_fds() <= before


def test_a_path_with_a_null_byte() -> None:
    with pytest.raises(ConnectError, match="contains a null byte"):
        HelperClient("a\0b").connect()


def test_a_path_that_is_too_long() -> None:
    with pytest.raises(ConnectError, match=r"^UNIX socket path 'a{108}' is too long"):
        HelperClient("a" * 108).connect()


# Helpers that do wrong.


@contextmanager
def wrong_helper(path: Path, *answers: bytes | None) -> Iterator[list[int]]:
    """Answer to a connection each, first with the greeting; None: no answer, and it stays open."""
    served: list[int] = []
    kept: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(16)

        def serve() -> None:
            for answer in answers:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.settimeout(PATIENCE)
                connection.sendall(bytes(4) if answer is None else answer[:4])
                kept.append(connection)
                if answer is None or len(answer) > 4:
                    _, fds, _, _ = socket.recv_fds(connection, 4, 1)
                    _, fds, _, _ = socket.recv_fds(connection, 16, 1)
                    for fd in fds:
                        os.close(fd)
                    served.append(len(fds))
                if answer is not None:
                    connection.sendall(answer[4:])
                    kept.pop().close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield served
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)
            for connection in kept:
                connection.close()
            assert not thread.is_alive()


@pytest.mark.parametrize("greeting", [b"", b"\0\0"])
def test_a_helper_that_leaves_at_once(path: Path, greeting: bytes) -> None:
    with wrong_helper(path, greeting), pytest.raises(ConnectError, match="closed the connection"):
        HelperClient(str(path)).connect()


def test_a_helper_that_says_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_TIMEOUT", 1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        with pytest.raises(ConnectError, match=r"': the helper doesn't answer$"):
            HelperClient(str(path)).connect()


def head(status: int, size: int) -> bytes:
    return bytes(4) + struct.pack(">iI96x", status, size)


@pytest.mark.parametrize(
    "answer",
    [
        head(0, 8193),  # more than was asked for
        head(0, 0xFFFFFFFF),
        head(2, 1),  # data of a command that failed
        head(0, 8) + b"1234567",
        head(0, 0)[:50],
        bytes(5)[:5],
    ],
)
def test_wrong_replies(path: Path, null: int, answer: bytes) -> None:
    """The command fails, and the next one connects anew. It is not sent twice."""

    async def main() -> None:
        changes: list[bool] = []
        made = connected(path, lambda: changes.append(made.is_connected))
        assert codec.describe_failure(await made.run(null, READ, b"")) == FAILED
        assert changes == [False]
        assert (await made.run(null, READ, b"")) == Reply(0, bytes(96), b"")
        assert changes == [False, True]
        made.close()

    with wrong_helper(path, answer, head(0, 0)) as served:
        run(main)
    assert served == [1, 1]


def test_data_in_the_reply_to_out(path: Path, null: int) -> None:
    async def main() -> None:
        made = connected(path)
        assert codec.describe_failure(await made.run(null, CLEAR, PARAMETERS)) == FAILED
        assert not made.is_connected

    with wrong_helper(path, head(0, 1)):
        run(main)


def test_a_helper_that_does_not_answer(
    path: Path, null: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "REPLY_TIMEOUT", 0.05)

    async def main() -> None:
        made = connected(path)
        assert codec.describe_failure(await made.run(null, READ, b"")) == FAILED
        assert not made.is_connected

    with wrong_helper(path, None):
        run(main)


def test_a_helper_that_reads_nothing(
    path: Path, null: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket is full: the client waits, and gives up."""
    monkeypatch.setattr(client, "REPLY_TIMEOUT", 0.05)
    monkeypatch.setattr(client, "ATTEMPTS", 1)

    async def main() -> None:
        made = connected(path)
        assert made._socket is not None
        with pytest.raises(BlockingIOError):  # noqa: PT012
            while True:
                made._socket.send(bytes(1000))
        assert codec.describe_failure(await made.run(null, READ, b"")) == FAILED
        assert not made.is_connected

    with wrong_helper(path, None):
        run(main)

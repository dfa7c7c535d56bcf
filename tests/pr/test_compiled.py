# SPDX-License-Identifier: Apache-2.0
"""Compiled connections: what they serve themselves, and what they leave to Python."""

from __future__ import annotations

import errno
import os
import socket
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.process import wait_until
from tests.pr import fake
from tests.pr.client import PATIENCE, Client, parameters, reserve_in, reserve_out
from tests.pr.programs import running
from vhostblk.pr.compiled import CompiledConnection, Extension, connection_type, load
from vhostblk.pr.connection import Connection
from vhostblk.reservations import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.pr.programs import Helper

#: A helper whose Python code carries out no command.
_NO_COMMANDS = """
import sys
from vhostblk.pr import commands, helper

def execute(self, request):
    raise RuntimeError("left to Python")

commands.Commands.execute = execute
sys.exit(helper.main())
"""


@pytest.fixture(scope="module")
def extension() -> Extension:
    found = load()
    assert found is not None
    return found


@pytest.fixture
def alone(tmp_path: Path, library: Path) -> Iterator[Helper]:
    program = [sys.executable, "-c", _NO_COMMANDS]
    with running(tmp_path, "-q", library=library, compiled=True, program=program) as helper:
        yield helper


def test_the_layout_is_that_of_python(extension: Extension) -> None:
    ffi, lib = extension
    assert lib.VB_PR_CDB_SIZE == layout.CDB_SIZE
    assert lib.VB_PR_SENSE_SIZE == layout.SENSE_SIZE
    assert layout.REPLY.size == lib.VB_PR_HEAD_SIZE
    assert lib.VB_PR_MAX_DATA == layout.MAX_DATA
    assert ffi.sizeof("struct vb_pr_reply") == layout.REPLY.size + layout.MAX_DATA
    assert len(ffi.new("struct vb_pr_connection *").fds) == lib.VB_PR_MAX_FDS


def test_plain_requests_need_no_python(alone: Helper) -> None:
    sense = bytes([0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0])
    with Client(alone.path) as client:
        with fake.device() as device:
            for length in (0, 8, 8192):
                answer = client.ask(reserve_in(length=length), device)
                assert answer == (0, bytes(96), fake.DATA[:length])
            for length in (0, 24, 8192):
                given = os.urandom(length)
                answer = client.ask(reserve_out(length=length), device, given)
                assert answer == (0, bytes(96), b"")
                assert fake.asked(device).data[:length] == given
        for status in (2, 0x18):
            result = fake.Result(status=status, sense=sense if status == 2 else b"")
            with fake.device(result) as device:
                expected = (status, result.sense.ljust(96, b"\0"), b"")
                assert client.ask(reserve_in(), device) == expected
                assert client.ask(reserve_out(), device, parameters()) == expected


def test_failures_below_scsi_send_no_command_twice(tmp_path: Path, library: Path) -> None:
    """Python makes the reply, and nothing else: it must not carry the command out again."""
    program = [sys.executable, "-c", _NO_COMMANDS]
    results = [fake.Result(error=5), fake.Result(host=3), fake.Result(driver=6)]
    with running(tmp_path, library=library, compiled=True, program=program) as helper:
        with Client(helper.path) as client:
            for result in results:
                with fake.device(result) as device:
                    assert client.ask(reserve_out(), device, parameters()).status in (2, 8)
        assert helper.end() == ""


def test_a_reply_that_is_not_read_does_not_hold_up_the_end(tmp_path: Path, library: Path) -> None:
    words = ["--x-vhostblk-timeout=1"]
    with running(tmp_path, *words, library=library, compiled=True) as helper:
        with Client(helper.path) as client, fake.device() as device:
            client.socket.setblocking(False)
            with pytest.raises(BlockingIOError):  # noqa: PT012
                while True:
                    client.send(reserve_in(), [device])
            wait_until(lambda: client.unread() and helper.states() == {"S"})
            assert helper.end() == ""


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH], ids=["read-only", "path"])
def test_writing_through_a_descriptor_for_reading_is_left_to_python(
    alone: Helper, flags: int
) -> None:
    with Client(alone.path) as client, fake.device(flags=flags) as device:
        client.send(reserve_out(), [device])
        client.send(parameters())
        assert client.is_closed()


def test_which_devices_are_left_to_python(alone: Helper) -> None:
    """Multipath maps need libmpathpersist, and their numbers are not fixed."""
    served = set()
    with fake.device(fake.Result(data=b"")) as device:
        for major in range(256):
            fake.change(device, fake.Result(major=major))
            with Client(alone.path) as client:
                client.send(reserve_in(length=8), [device])
                if not client.is_closed():
                    served.add(major)
    assert served == layout.SCSI_DISK_MAJORS | {layout.SCSI_GENERIC_MAJOR}


@pytest.mark.parametrize("path", ["/dev/null", "/", "/proc/self/stat"])
def test_other_files_are_left_to_python(alone: Helper, path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    with Client(alone.path) as client:
        client.send(reserve_in(), [fd])
        assert client.is_closed()
    os.close(fd)


def test_messages_in_pieces_are_left_to_python(alone: Helper) -> None:
    with Client(alone.path) as client, fake.device() as device:
        client.send(reserve_in()[:9], [device])
        client.send(reserve_in()[9:])
        assert client.is_closed()


class Lib:
    """Compiled code that does what a test says, once for each call."""

    def __init__(self, extension: Extension, *steps: Callable[[Any], int]) -> None:
        self._lib = extension.lib
        self._steps = iter(steps)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def vb_pr_serve(self, state: Any) -> int:
        """Do the next step."""
        return next(self._steps)(state)


@contextmanager
def connected(
    extension: Extension, *steps: Callable[[Any], int], patience: float = PATIENCE
) -> Iterator[tuple[CompiledConnection, socket.socket]]:
    """Make a connection that has agreed on features, and the client's socket."""
    ours, theirs = socket.socketpair()
    replaced = Extension(extension.ffi, Lib(extension, *steps))
    connection = CompiledConnection(replaced, 1000, ours, patience)
    theirs.sendall(bytes(4))
    with theirs:
        yield connection, theirs
    connection.close()


def test_a_reply_that_is_sent_in_part(extension: Extension) -> None:
    """Linux does that only where a socket has very little room."""
    reply = (2).to_bytes(4, "big") + bytes(4) + b"s" * 96

    def part(state: Any) -> int:
        extension.ffi.memmove(extension.ffi.addressof(state.reply), reply, 104)
        state.reply_size, state.sent = 104, 40
        return int(extension.lib.VB_PR_UNSENT)

    def end(state: Any) -> int:
        state.cdb_read = state.error = 0
        return int(extension.lib.VB_PR_READ)

    with connected(extension, part, end) as (connection, theirs):
        assert connection.receive() is None
        connection.socket.shutdown(socket.SHUT_WR)
        assert theirs.recv(1000) == reply[40:]


def test_a_reply_that_is_never_read(extension: Extension) -> None:
    """The client is closed after its time, although it owes nothing."""

    def unsent(state: Any) -> int:
        state.reply_size, state.sent = 8296, 0
        return int(extension.lib.VB_PR_UNSENT)

    with connected(extension, *[unsent] * 40, patience=0.1) as (connection, _):
        with pytest.raises(TimeoutError):
            connection.receive()


def test_a_read_that_fails_is_not_repeated(extension: Extension) -> None:
    """The second one would wait again, or find an end that is none."""
    fd = os.open("/dev/null", os.O_RDWR)

    def fail(state: Any) -> int:
        extension.ffi.memmove(state.cdb, reserve_out(), 16)
        state.cdb_read, state.fd_count, state.fds[0] = 16, 1, fd
        state.error = errno.ECONNRESET
        return int(extension.lib.VB_PR_READ)

    with connected(extension, fail) as (connection, _), pytest.raises(ConnectionResetError):
        connection.receive()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_tracing_is_left_to_python(tmp_path: Path, library: Path) -> None:
    words = ["-T", f"pr_helper_command,file={tmp_path}/trace"]
    with running(tmp_path, *words, library=library, compiled=True) as helper:
        with Client(helper.path) as client, fake.device() as device:
            client.ask(reserve_in(), device)
        helper.end()
    assert "pr_helper_command" in (tmp_path / "trace").read_text()


@pytest.mark.parametrize("compiled", [True, False])
def test_which_code_a_helper_uses(tmp_path: Path, compiled: bool) -> None:
    with running(tmp_path, compiled=compiled) as helper, Client(helper.path):
        maps = Path(f"/proc/{helper.process.pid}/maps").read_text()
        assert ("_connection" in maps) == compiled
        assert "_engine" not in maps
        assert helper.end() == ""


def test_without_the_extension(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Python serves; `-v` says why."""
    caplog.set_level("INFO")
    monkeypatch.setitem(sys.modules, "vhostblk.pr._connection", None)
    assert connection_type(1000) is Connection
    assert "no compiled code: " in caplog.text

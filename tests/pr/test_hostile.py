# SPDX-License-Identifier: Apache-2.0
"""What hostile clients do to the helper's process: it serves others, and leaks nothing."""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.cli.process import wait_until
from tests.pr import fake
from tests.pr.client import PATIENCE, Client, Watched, cdb, parameters, reserve_in, reserve_out
from tests.pr.programs import Helper, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("lane")


@pytest.fixture(scope="module")
def helper(tmp_path_factory: pytest.TempPathFactory, library: Path, lane: None) -> Iterator[Helper]:
    """Have one for all tests here: what one leaves behind, another one finds."""
    with running(tmp_path_factory.mktemp("hostile"), library=library) as helper:
        yield helper


@contextmanager
def unharmed(helper: Helper) -> Iterator[Client]:
    """Yield another client, who is served as before afterwards; all descriptors are closed."""
    with Client(helper.path) as good, fake.device() as device:
        assert good.ask(reserve_in(), device).data == fake.DATA
        before = helper.descriptors()
        yield good
        assert good.ask(reserve_in(), device).data == fake.DATA
        wait_until(lambda: helper.descriptors() <= before)
        out = good.ask(reserve_out(), device, parameters(1, 2))
        assert (out.status, out.data) == (0, b"")


def refused(helper: Helper, message: bytes, count: int = 1) -> None:
    """Send a message with descriptors: the connection is closed, and so are the descriptors."""
    watched = Watched()
    with unharmed(helper), Client(helper.path) as client:
        client.send(message, [watched.fd] * count)
        assert client.is_closed()
    watched.wait_closed()


@pytest.mark.parametrize("word", [1, 0x80000000, 0xFFFFFFFF])
def test_wrong_features(helper: Helper, word: int) -> None:
    with unharmed(helper), Client(helper.path, greet=False) as client:
        assert client.receive(4) == bytes(4)
        client.send(struct.pack(">I", word))
        assert client.is_closed()


def test_descriptors_with_the_features(helper: Helper) -> None:
    """They are nobody's, and don't count for the first request."""
    watched = Watched()
    with unharmed(helper), Client(helper.path, greet=False) as client:
        assert client.receive(4) == bytes(4)
        client.send(bytes(4), [watched.fd] * 100)
        client.send(reserve_in())
        assert client.is_closed()
    watched.wait_closed()


def test_no_descriptor_but_that_of_another_client(helper: Helper) -> None:
    """A number that was a descriptor of this client's is another client's now."""
    with unharmed(helper), ExitStack() as stack:
        device = stack.enter_context(fake.device())
        slow = stack.enter_context(fake.device(fake.Result(milliseconds=3_600_000)))
        client, other = (stack.enter_context(Client(helper.path)) for _ in range(2))
        assert client.ask(reserve_in(), device).status == 0
        other.send(reserve_in(), [slow])
        wait_until(lambda: fake.asked(slow).cdb == reserve_in())
        client.send(reserve_out(length=0))
        assert client.is_closed()
        fake.change(slow, fake.Result())
        assert other.answer().status == 0
        assert fake.asked(slow).cdb == reserve_in()


def test_no_descriptor(helper: Helper) -> None:
    with unharmed(helper), Client(helper.path) as client:
        client.send(reserve_in())
        assert client.is_closed()


@pytest.mark.parametrize("count", [2, 3, 253])
def test_too_many_descriptors(helper: Helper, count: int) -> None:
    refused(helper, reserve_in(), count)


def test_a_descriptor_with_each_byte(helper: Helper) -> None:
    watched = Watched()
    with unharmed(helper), Client(helper.path) as client:
        client.send(b"\x5e", [watched.fd])
        client.send(b"\0", [watched.fd])
        assert client.is_closed()
    watched.wait_closed()


def test_a_descriptor_with_any_byte(helper: Helper) -> None:
    message = reserve_in(length=8)
    with unharmed(helper), Client(helper.path) as client, fake.device() as device:
        for at in range(16):
            for index in range(16):
                client.send(message[index : index + 1], [device] if index == at else [])
            assert client.answer().data == fake.DATA[:8]


@pytest.mark.parametrize("message", [reserve_in(), reserve_out() + parameters(1, 2)])
def test_a_message_that_stops_at_any_byte(helper: Helper, message: bytes) -> None:
    """It is complete when the rest comes; a client that leaves instead leaves nothing behind."""
    with unharmed(helper), Client(helper.path) as client, fake.device() as device:
        for cut in range(1, len(message)):
            client.send(message[:cut], [device])
            with Client(helper.path) as other:
                other.send(message[:cut], [device])
                wait_until(lambda: not client.unread() and not other.unread())
            client.send(message[cut:])
            assert client.answer().status == 0
            if message[0] == 0x5F:
                assert fake.asked(device).data[:24] == parameters(1, 2)


def test_a_helper_that_is_stopped_for_a_while(helper: Helper) -> None:
    """The kernel interrupts system calls then that have a time limit, with EINTR."""
    with unharmed(helper), ExitStack() as stack:
        device = stack.enter_context(fake.device())
        idle, waiting = (stack.enter_context(Client(helper.path)) for _ in range(2))
        assert idle.ask(reserve_in(), device).status == 0
        waiting.send(reserve_out(), [device])
        wait_until(lambda: not waiting.unread() and helper.states() == {"S"})
        helper.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: helper.states() == {"T"})
        helper.process.send_signal(signal.SIGCONT)
        wait_until(lambda: helper.states() == {"S"})
        waiting.send(parameters(1, 2))
        assert waiting.answer().status == 0
        assert idle.ask(reserve_in(), device).status == 0


def test_a_client_that_reads_its_replies_late(helper: Helper) -> None:
    """Once there is no room for more requests, all replies arrive, in order."""
    with unharmed(helper), Client(helper.path) as client, fake.device() as device:
        client.socket.setblocking(False)
        lengths: list[int] = []
        with suppress(BlockingIOError):
            while True:
                client.send(reserve_in(length=8192 - len(lengths)), [device])
                lengths.append(8192 - len(lengths))
        client.socket.settimeout(PATIENCE)
        for length in lengths:
            assert client.answer().data == fake.DATA[:length]


def test_descriptors_with_the_parameter_list(helper: Helper) -> None:
    watched = Watched()
    with unharmed(helper), Client(helper.path) as client, fake.device() as device:
        client.send(reserve_out(), [device])
        client.send(parameters(1, 2), [watched.fd] * 10)
        assert client.answer().status == 0
        assert fake.asked(device).data[:24] == parameters(1, 2)
    watched.wait_closed()


@pytest.mark.parametrize("operation", [0x00, 0x12, 0x2A, 0x5D, 0x60, 0x88, 0xFF])
def test_other_commands(helper: Helper, operation: int) -> None:
    refused(helper, cdb(operation, 0, 0, 24))


@pytest.mark.parametrize("operation", [0x5E, 0x5F])
@pytest.mark.parametrize("length", [8193, 0xFFFF])
def test_too_much_data(helper: Helper, operation: int, length: int) -> None:
    refused(helper, cdb(operation, 0, 0, length))


@pytest.mark.parametrize("length", [0, 1, 23, 24, 8191, 8192])
def test_any_length_of_parameters(helper: Helper, length: int) -> None:
    """The device gets just as many bytes as the CDB says; more are the next command."""
    given = os.urandom(length)
    with unharmed(helper), Client(helper.path) as client, fake.device() as device:
        assert client.ask(reserve_out(length=length), device, given).status == 0
        asked = fake.asked(device)
        assert (asked.data_length, asked.data[:length]) == (length, given)


@pytest.mark.parametrize("length", [0, 1, 7, 8192])
def test_any_allocation_length(helper: Helper, length: int) -> None:
    with unharmed(helper), Client(helper.path) as client, fake.device() as device:
        assert client.ask(reserve_in(length=length), device).data == fake.DATA[:length]


@pytest.mark.parametrize("residue", [8192, 8193, 1 << 30, -1, -(1 << 31)])
def test_a_device_that_lies_about_what_it_has_written(helper: Helper, residue: int) -> None:
    with (
        unharmed(helper),
        Client(helper.path) as client,
        fake.device(fake.Result(residue=residue)) as device,
    ):
        assert len(client.ask(reserve_in(), device).data) in (0, 8192)


def test_a_device_that_writes_less_than_it_says(helper: Helper) -> None:
    """A client gets nothing that was there before: another device's data, a parameter list."""
    with unharmed(helper), Client(helper.path) as client, fake.device() as device:
        with fake.device(fake.Result(data=b"")) as silent:
            assert client.ask(reserve_in(), device).data == fake.DATA
            assert client.ask(reserve_in(), silent).data == bytes(8192)
            given = b"secret" * 4
            assert client.ask(reserve_out(length=24), device, given).status == 0
            assert client.ask(reserve_in(), silent).data == bytes(8192)


@pytest.mark.parametrize(
    "begun",
    [
        b"\0",
        bytes(4),
        bytes(4) + b"\x5e",
        bytes(4) + reserve_out(),
        bytes(4) + reserve_out() + b"a",
    ],
)
@pytest.mark.parametrize("half", [True, False], ids=["half-closed", "gone"])
def test_a_message_that_is_cut_short(helper: Helper, begun: bytes, half: bool) -> None:
    watched = Watched()
    with unharmed(helper), Client(helper.path, greet=False) as client:
        assert client.receive(4) == bytes(4)
        client.send(begun[:4])
        if begun[4:]:
            client.send(begun[4:], [watched.fd])
        if half:
            client.socket.shutdown(socket.SHUT_WR)
            assert client.is_closed()
    watched.wait_closed()


def test_a_client_that_leaves_before_the_reply(helper: Helper) -> None:
    with unharmed(helper), fake.device() as device:
        for _ in range(50):
            with Client(helper.path) as client:
                client.send(reserve_in(), [device])


def test_descriptors_that_are_no_devices(helper: Helper, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    with ExitStack() as stack:
        opened = [
            os.open(tmp_path / "file", os.O_RDWR),
            os.open(tmp_path / "fifo", os.O_RDWR),
            os.open("/dev/null", os.O_RDWR),
            os.open("/dev/zero", os.O_RDWR),
            socket.socket().detach(),
            os.eventfd(0),
            os.memfd_create("memory"),
        ]
        for fd in opened:
            stack.callback(os.close, fd)
        stack.enter_context(unharmed(helper))
        client = stack.enter_context(Client(helper.path))
        for fd in opened:
            for message, given in ((reserve_in(), b""), (reserve_out(), parameters())):
                answer = client.ask(message, fd, given)
                assert (answer.status, answer.sense[2], answer.data) == (2, 0xB, b"")


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH])
def test_writing_through_a_descriptor_for_reading(helper: Helper, flags: int) -> None:
    with unharmed(helper), Client(helper.path) as client, fake.device(flags=flags) as device:
        answer = client.ask(reserve_out(), device, parameters(1, 2))
        assert (answer.status, answer.sense[2], answer.sense[12]) == (2, 5, 0x20)
        if flags == os.O_RDONLY:
            assert client.ask(reserve_in(), device).status == 0
            assert fake.asked(device).cdb == bytes(16), "nothing has been written"


def test_its_own_socket_as_the_device(helper: Helper) -> None:
    with unharmed(helper), Client(helper.path) as client:
        assert client.ask(reserve_in(), client.socket.fileno()).status == 2


def test_a_flood_of_connections(tmp_path: Path, library: Path) -> None:
    """Beyond the limit they are closed at once, and told of now and then."""
    words = ["--x-vhostblk-connections=100"]
    with running(tmp_path, *words, library=library) as helper:
        flood(helper)
        log = helper.end()
    assert log.count("\n") <= 30


def flood(helper: Helper) -> None:
    """Have far more connections than there may be; the ones before are served."""
    with unharmed(helper), fake.device() as device:
        before = helper.descriptors()
        with ExitStack() as stack:
            clients = [stack.enter_context(Client(helper.path)) for _ in range(99)]
            for _ in range(2000):
                with Client(helper.path, greet=False) as client:
                    assert client.receive(4) == bytes(4)
                    assert client.is_closed()
            assert helper.descriptors() <= before + 99
            for client in clients:
                assert client.ask(reserve_in(length=4), device).data == fake.DATA[:4]
            if "ASAN_OPTIONS" not in os.environ:  # it keeps what is freed
                assert int(helper.status()["VmHWM"].split()[0]) <= 40 * 1024


def test_many_slow_devices_keep_nobody_waiting(tmp_path: Path, library: Path) -> None:
    """More than other helpers have threads; each has one here."""
    result = fake.Result(milliseconds=3_600_000)
    with (
        running(tmp_path, library=library) as helper,
        fake.device(result) as slow,
        ExitStack() as stack,
    ):
        good = stack.enter_context(Client(helper.path))
        for _ in range(100):
            stack.enter_context(Client(helper.path)).send(reserve_in(), [slow])
        with fake.device() as device:
            wait_until(lambda: helper.threads() > 100)
            assert good.ask(reserve_in(), device).data == fake.DATA


def test_no_descriptors_left(tmp_path: Path, library: Path) -> None:
    """A client whose request can't be taken is closed; others go on once there are some again."""
    with running(tmp_path, library=library) as helper, ExitStack() as stack:
        idle = [stack.enter_context(Client(helper.path)) for _ in range(4)]
        with fake.device() as device:
            for client in idle:
                client.ask(reserve_in(), device)
            used = helper.descriptors()
            resource.prlimit(helper.process.pid, resource.RLIMIT_NOFILE, (used, used))
            idle[0].send(reserve_in(), [device])
            assert idle[0].is_closed()
            # There is one again; not all of the next client's are taken.
            idle[1].send(reserve_in(), [device] * 2)
            assert idle[1].is_closed()
            assert idle[2].ask(reserve_in(), device).data == fake.DATA
            helper.process.terminate()
            assert helper.process.wait(30) == 0


def test_noise(helper: Helper) -> None:
    with unharmed(helper):
        for length in (1, 16, 100, 100_000):
            with Client(helper.path, greet=False) as client:
                try:
                    client.send(os.urandom(length))
                except (BrokenPipeError, ConnectionResetError):
                    continue
                client.socket.shutdown(socket.SHUT_WR)
                assert client.receive(4) == bytes(4)
                assert client.is_closed()

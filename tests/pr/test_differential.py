# SPDX-License-Identifier: Apache-2.0
"""The same bytes to several helpers: the same come back, and devices are asked the same.

They are ours with compiled code, ours without, and QEMU's where there is one (`make roots`). The
differences of QEMU's that are meant to be:

- QEMU's takes some failures of the host adapter for success (`FALSE_SUCCESS`).
- It asks for a time-out of 1 ms, ours for 30 s.
- It leaves what was there before behind sense data that it makes itself, and where there are none.
"""

from __future__ import annotations

import os
import random
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.pr import fake
from tests.pr.client import Client, cdb, parameters, reserve_in, reserve_out
from tests.pr.programs import has_qemus, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.pr.client import Answer

#: Values of `host_status` that QEMU's helper doesn't know.
FALSE_SUCCESS = frozenset({0x06, 0x07, *range(0x09, 0x0E), 0x0F, *range(0x14, 0x100)})


class Outcome(NamedTuple):
    """What a client sees, and what the device was asked."""

    #: None: the connection was closed.
    answer: Answer | None
    asked: fake.Asked


@pytest.fixture(scope="module")
def clients(
    tmp_path_factory: pytest.TempPathFactory, library: Path
) -> Iterator[tuple[Connection, ...]]:
    with ExitStack() as stack:
        yield connections(tmp_path_factory.mktemp("differential"), library, stack)


def connections(directory: Path, library: Path, stack: ExitStack) -> tuple[Connection, ...]:
    """Connect to all helpers there are: compiled, Python, QEMU's."""
    compiled = stack.enter_context(running(directory, "-q", library=library, compiled=True))
    python = stack.enter_context(running(directory, "-q", library=library, compiled=False))
    helpers = [compiled, python]
    if has_qemus():
        helpers.append(stack.enter_context(running(directory, "-q", library=library, qemu=True)))
    return tuple(Connection(helper.path, stack) for helper in helpers)


class Connection:
    """A client that connects again after the helper has closed the connection."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path = path
        self._client: Client | None = None
        stack.callback(self._close)

    def _close(self) -> None:
        if self._client is not None:
            self._client.socket.close()
        self._client = None

    def do(self, message: bytes, result: fake.Result, count: int = 1, flags: int = 2) -> Outcome:
        """Send a message with `count` descriptors of a device; no more will come."""
        if self._client is None:
            self._client = Client(self._path)
        client = self._client
        with fake.device(result, flags) as device, fake.device(result) as other:
            fds = [device, *[other] * (count - 1)] if count else []
            try:
                client.send(message, fds)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it was refused before all was sent
            complete = len(message) >= 16 and (
                message[0] != 0x5F or len(message) >= 16 + int.from_bytes(message[7:9], "big")
            )
            if not complete:
                client.socket.shutdown(socket.SHUT_WR)
            try:
                answer = client.answer()
            except (AssertionError, ConnectionResetError):
                answer = None
                self._close()
            return Outcome(answer, fake.asked(device))


def compare(
    clients: tuple[Connection, ...],
    message: bytes,
    result: fake.Result | None = None,
    count: int = 1,
    flags: int = os.O_RDWR,
) -> Outcome:
    """Have all do the same; return what came of it."""
    outcomes = [each.do(message, result or fake.Result(), count, flags) for each in clients]
    compiled, python, *qemus = outcomes
    assert compiled == python
    for theirs in qemus:
        assert comparable(compiled) == comparable(theirs)
    return compiled


def comparable(outcome: Outcome) -> tuple[object, ...]:
    answer, asked = outcome
    asked = asked._replace(timeout=0)
    if answer is None:
        return None, asked
    # Sense data come with CHECK CONDITION only; their additional length tells where they end.
    sense = answer.sense[: 8 + answer.sense[7]] if answer.status == 2 else b""
    return answer.status, sense, answer.data, asked


@pytest.mark.parametrize("operation", [0x5E, 0x5F])
def test_every_service_action(clients: tuple[Connection, ...], operation: int) -> None:
    given = parameters(1, 2) if operation == 0x5F else b""
    for action in range(32):
        for kind in (0, 1, 3, 5, 8, 0x15):
            message = cdb(operation, action, kind, 24, control=4) + given
            outcome = compare(clients, message)
            assert outcome.answer is not None
            assert outcome.asked.cdb == message[:16]


@pytest.mark.parametrize("length", [0, 1, 8, 23, 24, 28, 255, 256, 8191, 8192, 8193, 65535])
def test_lengths(clients: tuple[Connection, ...], length: int) -> None:
    compare(clients, reserve_in(length=length))
    compare(clients, reserve_out(length=length) + os.urandom(length))


def test_reserved_bytes_are_passed_on(clients: tuple[Connection, ...]) -> None:
    for at in (1, 2, 3, 4, 5, 6, 9, 10, 15):
        message = bytearray(reserve_in(length=16))
        message[at] = 0xFF
        compare(clients, bytes(message))


def test_every_operation_code(clients: tuple[Connection, ...]) -> None:
    for operation in range(0, 256, 3):
        assert (compare(clients, cdb(operation, 0, 0, 0)).answer is None) == (operation != 0x5D + 2)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_descriptors(clients: tuple[Connection, ...], count: int) -> None:
    compare(clients, reserve_in(), count=count)
    compare(clients, reserve_out() + parameters(), count=count)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_PATH])
def test_access_modes(clients: tuple[Connection, ...], flags: int) -> None:
    compare(clients, reserve_in(), flags=flags)
    compare(clients, reserve_out() + parameters(), flags=flags)


@pytest.mark.parametrize("length", [1, 15, 16, 39])
def test_messages_that_are_cut_short(clients: tuple[Connection, ...], length: int) -> None:
    assert compare(clients, (reserve_out() + parameters())[:length]).answer is None


def test_every_errno(clients: tuple[Connection, ...]) -> None:
    for error in range(1, 134):
        compare(clients, reserve_in(), fake.Result(error=error))


def test_every_host_status(clients: tuple[Connection, ...]) -> None:
    for host in set(range(256)) - FALSE_SUCCESS:
        compare(clients, reserve_in(length=20), fake.Result(host=host))
        compare(clients, reserve_out() + parameters(), fake.Result(host=host))


def test_failures_that_qemus_helper_takes_for_success(
    clients: tuple[Connection, ...],
) -> None:
    """Should that change, so should we."""
    for host in FALSE_SUCCESS:
        results = [each.do(reserve_in(), fake.Result(host=host)) for each in clients]
        statuses = [each.answer.status for each in results if each.answer is not None]
        assert statuses == [2, 2, 0][: len(clients)]


def test_every_driver_status(clients: tuple[Connection, ...]) -> None:
    sense = bytes([0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0, 0, 0])
    for driver in range(64):
        for status in (0, 2):
            compare(clients, reserve_in(), fake.Result(driver=driver, status=status, sense=sense))


def test_every_status_and_sense(clients: tuple[Connection, ...]) -> None:
    for status in range(1, 256):
        for sense in (b"", bytes([0x72, 6, 0x29, 0, 0, 0, 0, 4, *b"more"]), b"\x70" + b"\x58" * 95):
            compare(clients, reserve_in(), fake.Result(status=status, sense=sense))


def test_residues(clients: tuple[Connection, ...]) -> None:
    for residue in (0, 1, 8, 8184, 8191, 8192):
        for length in (0, 1, 8, 100, 8192):
            compare(clients, reserve_in(length=length), fake.Result(residue=residue))


def test_random_messages(clients: tuple[Connection, ...]) -> None:
    """`python -m tests.pr.fuzz` goes on."""
    chance = random.Random(22)
    for _ in range(300):
        compare(clients, *random_case(chance))


def random_case(chance: random.Random) -> tuple[bytes, fake.Result, int, int]:
    """Make a message, the device's answer, the number of descriptors and their access mode."""
    operation = chance.choice([0x5E, 0x5F, 0x5E, 0x5F, chance.randrange(256)])
    length = chance.choice([0, 8, 24, 24, 40, 8192, 8193, chance.randrange(9000)])
    message = bytearray(cdb(operation, chance.randrange(32), chance.randrange(256), length))
    for at in chance.sample(range(1, 16), chance.choice([0, 0, 1, 3])):
        message[at] = chance.randrange(256)
    if operation == 0x5F:
        message += chance.randbytes(int.from_bytes(message[7:9], "big"))
    if chance.random() < 0.1:
        del message[chance.randrange(1, len(message)) :]
    known = sorted(set(range(0x14)) - FALSE_SUCCESS)
    result = fake.Result(
        error=chance.choice([0] * 8 + list(range(1, 134))) if chance.random() < 0.3 else 0,
        status=chance.choice([0, 0, 0, 2, 8, 0x18, 0x28]),
        host=chance.choice([0] * 6 + known),
        driver=chance.choice([0] * 6 + [6, 8]),
        sense=chance.randbytes(chance.choice([0, 18, 96])),
        residue=chance.choice([0, 0, 8168, chance.randrange(8193)]),
    )
    count = chance.choice([1] * 8 + [0, 2])
    return bytes(message), result, count, chance.choice([os.O_RDWR] * 4 + [os.O_RDONLY])

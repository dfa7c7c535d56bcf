# SPDX-License-Identifier: Apache-2.0
"""What is the same for all ports, on two kinds of them: virtqueues, and `wire` (`wire.c`)."""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from tests.engine.support import Rig, Upcall, make_request
from tests.engine.wire import wire_engine
from tests.engine.wire.client import WireClient
from tests.virtio_blk.support import MIB, UNSET, pattern
from vhostblk.engine import load
from vhostblk.engine.extents import ExtentKind, ExtentMap, Treatment
from vhostblk.engine.layouts import STATS
from vhostblk.engine.maps import encode_map
from vhostblk.virtio_blk.layout import RequestType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.engine.support import EngineQueue
    from tests.virtio_blk.support import Pending
    from vhostblk.engine import Engine

READ, WRITE, FLUSH, DISCARD = range(4)
FUA = 1
OTHER = 256
SIZE = 4 * MIB

NULL = ExtentMap(ExtentKind.NULL, SIZE, writable=True, read_zeroes=True, flush=Treatment.IGNORE)


class FailedError(Exception):
    """A request was answered with an error."""


class Request(ABC):
    """A request under way."""

    @abstractmethod
    def wait(self) -> bytes:
        """Wait for its answer; return the data of a read. Raises FailedError."""

    @property
    @abstractmethod
    def answered(self) -> bool:
        """Whether an answer has come."""


class Port(ABC):
    """A port and its requester."""

    def __init__(self, rig: Rig, handle: Any) -> None:
        self.rig, self.handle = rig, handle
        self._maps: list[Any] = []

    @abstractmethod
    def send(self, kind: int, offset: int = 0, length: int = 512, data: bytes = b"") -> Request:
        """Send a request."""

    def run(self, kind: int, offset: int = 0, length: int = 512, data: bytes = b"") -> bytes:
        """Run one request alone."""
        return self.send(kind, offset, length, data).wait()

    def use(self, extents: ExtentMap | None) -> None:
        """Go by a map."""
        encoded = self.rig.ffi.NULL
        if extents is not None:
            encoded = encode_map(self.rig.ffi, self.rig.lib, extents)
        self._maps.append(encoded)
        self.rig.lib.vb_port_set_map(self.handle, encoded)

    def hold(self) -> None:
        self.rig.lib.vb_port_hold(self.handle)

    def release(self) -> None:
        self.rig.lib.vb_port_release(self.handle)

    @property
    def in_flight(self) -> int:
        count: int = self.rig.lib.vb_port_in_flight(self.handle)
        return count

    @property
    def unsettled(self) -> int:
        count: int = self.rig.lib.vb_port_unsettled(self.handle)
        return count

    def become_idle(self) -> None:
        """Hold it, and wait until nothing is in flight."""
        self.hold()
        while self.in_flight:
            self.rig.wait_news()

    def answer(self, upcall: Upcall, status: int = 0) -> None:
        """Answer a request that came up."""
        ffi = self.rig.ffi
        tags, statuses = ffi.new("uint16_t *", upcall.tag), ffi.new("uint8_t *", status)
        self.rig.lib.vb_port_complete(self.handle, 1, tags, statuses, ffi.new("uint32_t *"))

    def stats(self) -> np.void:
        self.rig.wait_until(lambda: not self.rig.lib.vb_port_pending(self.handle))
        buffer = self.rig.ffi.buffer(self.rig.lib.vb_port_stats(self.handle), STATS.itemsize)
        record: np.void = np.frombuffer(bytes(buffer), STATS)[0]
        return record

    @abstractmethod
    def close(self) -> None:
        """Close the port, which is held and idle."""


class _QueueRequest(Request):
    def __init__(self, port: QueuePort, pending: Pending) -> None:
        self._port, self._pending = port, pending

    @property
    def answered(self) -> bool:
        return self._pending.status != UNSET

    def wait(self) -> bytes:
        self._port.rig.wait_until(lambda: self.answered)
        if self._pending.status:
            raise FailedError
        return self._pending.data


class QueuePort(Port):
    """A virtqueue."""

    def __init__(self, rig: Rig, queue: EngineQueue) -> None:
        super().__init__(rig, queue.port)
        self._queue = queue

    def send(self, kind: int, offset: int = 0, length: int = 512, data: bytes = b"") -> Request:
        type_ = {READ: RequestType.IN, WRITE: RequestType.OUT, FLUSH: RequestType.FLUSH}[kind]
        want = length if kind == READ else 0
        self._queue.ring.poll()
        return _QueueRequest(
            self, make_request(self._queue.ring, type_, offset // 512, send=data, want=want)
        )

    def close(self) -> None:
        """`Rig` does it."""
        self.release()


class _WireRequest(Request):
    def __init__(self, client: WireClient, cookie: int) -> None:
        self._client, self._cookie = client, cookie

    @property
    def answered(self) -> bool:
        return self._client.has(self._cookie)

    def wait(self) -> bytes:
        error, data = self._client.wait(self._cookie)
        if error:
            raise FailedError
        return data


class WirePort(Port):
    """The test's own protocol."""

    def __init__(self, rig: Rig) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(rig, rig.lib.wire_new(rig.thread, theirs.fileno(), SIZE))
        theirs.close()
        self.client = WireClient(ours)
        rig.lib.vb_port_open(self.handle)

    def send(self, kind: int, offset: int = 0, length: int = 512, data: bytes = b"") -> Request:
        length = len(data) or (length if kind == READ else 0)
        return _WireRequest(self.client, self.client.send(kind, offset, length, data))

    def close(self) -> None:
        self.rig.lib.vb_port_close(self.handle)
        self.client.connection.close()


class Bench:
    """An iothread, and ports of one kind."""

    def __init__(self, rig: Rig, make: Callable[[], Port]) -> None:
        self.rig, self._make = rig, make
        self.ports: list[Port] = []

    def port(self, extents: ExtentMap | None = None) -> Port:
        """Make a port and let it begin."""
        port = self._make()
        self.ports.append(port)
        port.use(extents)
        port.release()
        return port

    def close(self) -> None:
        for port in self.ports:
            port.hold()
            while port.in_flight:
                for upcall in self.rig.take_all():
                    port.answer(upcall, 1)
                if port.in_flight:
                    self.rig.wait_news()
            port.close()


class Kind(NamedTuple):
    """How ports of a kind are made."""

    engine: Callable[[], Engine | None]
    make: Callable[[Rig], Port]


def _queue(rig: Rig) -> Port:
    queue = rig.queue(size=256, device_size=SIZE)
    queue.hold()
    return QueuePort(rig, queue)


KINDS = {"virtqueue": Kind(load, _queue), "wire": Kind(wire_engine, WirePort)}


@contextmanager
def _bench(kind: Kind, io: str) -> Iterator[Bench]:
    layout = ((0, 256 * 1024), (1 << 32, 16 * MIB))
    with Rig(io, layout=layout, engine=kind.engine()) as rig:
        bench = Bench(rig, lambda: kind.make(rig))
        yield bench
        bench.close()


@pytest.fixture(params=list(KINDS))
def bench(request: pytest.FixtureRequest, io: str) -> Iterator[Bench]:
    with _bench(KINDS[request.param], io) as bench:
        yield bench


@pytest.fixture
def disk() -> Iterator[int]:
    fd = os.memfd_create("disk", os.MFD_CLOEXEC)
    os.truncate(fd, SIZE)
    yield fd
    os.close(fd)


def linear(fd: int, *, buffered: bool = True) -> ExtentMap:
    return ExtentMap(
        ExtentKind.LINEAR, SIZE, fd=fd, writable=True, buffered=buffered, flush=Treatment.FILE
    )


@pytest.mark.parametrize("buffered", [True, False])
def test_reads_writes_and_flushes(bench: Bench, disk: int, buffered: bool) -> None:
    port = bench.port(linear(disk, buffered=buffered))
    for number in range(10):
        port.run(WRITE, number * 4096, data=pattern(4096, number))
    port.run(FLUSH)
    requests = [port.send(READ, number * 4096, 4096) for number in range(10)]
    assert [request.wait() for request in requests] == [pattern(4096, seed) for seed in range(10)]
    stats = port.stats()
    assert stats["operations"].tolist() == [10, 10, 1, 0]
    assert stats["bytes"].tolist() == [40960, 40960, 0, 0]


def test_long_transfers(bench: Bench, disk: int) -> None:
    port = bench.port(linear(disk))
    content = pattern(3 * MIB, 1)
    port.run(WRITE, 512, data=content)
    assert os.pread(disk, len(content), 512) == content
    assert port.run(READ, 512, len(content)) == content


def test_held_port_takes_nothing(bench: Bench) -> None:
    held, other = bench.port(NULL), bench.port(NULL)
    held.hold()
    held.hold()
    request = held.send(READ)
    held.release()
    assert other.run(READ) == bytes(512)  # it is served meanwhile
    assert not request.answered
    assert held.in_flight == 0
    held.release()
    assert request.wait() == bytes(512)


def test_what_is_in_flight_is_finished_while_held(bench: Bench) -> None:
    port = bench.port()
    request = port.send(FLUSH)
    (upcall,) = bench.rig.wait_upcalls()
    port.hold()
    bench.rig.wait_until(lambda: not bench.rig.lib.vb_port_pending(port.handle))
    assert port.in_flight == 1
    port.answer(upcall)
    request.wait()
    port.become_idle()
    port.release()
    port.release()


def test_upcalls_say_what_is_to_be_done(bench: Bench) -> None:
    port = bench.port()
    read, write = port.send(READ, 1024, 1536), port.send(WRITE, 4096, data=pattern(512, 3))
    first, second = bench.rig.wait_upcalls(2)
    assert (first.kind, first.offset, sum(size for _, size in first.segments)) == (READ, 1024, 1536)
    assert (second.kind, second.offset, second.payload()) == (WRITE, 4096, pattern(512, 3))
    port.answer(second)
    write.wait()
    port.answer(first, 5)
    with pytest.raises(FailedError):
        read.wait()
    assert port.stats()["upcalls"] == 2


def test_map_is_exchanged_while_idle(bench: Bench) -> None:
    disks = [os.memfd_create(str(number), os.MFD_CLOEXEC) for number in range(3)]
    for number, fd in enumerate(disks):
        os.pwrite(fd, pattern(SIZE, number), 0)
    port = bench.port()
    for turn in range(12):
        port.become_idle()
        port.use(linear(disks[turn % 3], buffered=bool(turn % 2)))
        port.release()
        assert port.run(READ, 4096, 4096) == pattern(SIZE, turn % 3)[4096:8192]
    for fd in disks:
        os.close(fd)


@pytest.mark.parametrize("io", ["uring"], indirect=True)  # by a thread a pipe can't be read so
def test_settling_waits_for_what_went_by_the_map_before(bench: Bench) -> None:
    """What is in flight is a read from an empty pipe."""
    reading, writing = os.pipe()
    port = bench.port(ExtentMap(ExtentKind.LINEAR, SIZE, fd=reading))
    first = port.send(READ)
    bench.rig.wait_until(lambda: bench.rig.lib.vb_port_mapped_in_flight(port.handle) == 1)
    bench.rig.lib.vb_port_settle(port.handle)
    bench.rig.wait_until(lambda: not bench.rig.lib.vb_port_pending(port.handle))
    second = port.send(READ)
    bench.rig.wait_until(lambda: bench.rig.lib.vb_port_mapped_in_flight(port.handle) == 2)
    assert port.unsettled == 1
    os.write(writing, pattern(512, 1) * 2)
    while port.unsettled:
        bench.rig.wait_news()
    assert (first.wait(), second.wait()) == (pattern(512, 1), pattern(512, 1))
    os.close(reading)
    os.close(writing)


def test_failed_io_is_news(bench: Bench) -> None:
    reading, writing = os.pipe()
    port = bench.port(linear(reading))
    with pytest.raises(FailedError):
        port.run(WRITE, data=bytes(512))
    assert bench.rig.lib.vb_port_take_error(port.handle, 1) != 0
    assert bench.rig.lib.vb_port_take_error(port.handle, 1) == 0
    os.close(reading)
    os.close(writing)


def test_others_have_their_turn_during_long_reads(bench: Bench) -> None:
    long, short = bench.port(NULL), bench.port(NULL)
    requests = [long.send(READ, 0, 2 * MIB) for _ in range(3)]
    served = 0
    while not all(request.answered for request in requests):
        short.run(READ)
        served += 1
        if served > 3:
            break
    assert [request.wait() for request in requests] == [bytes(2 * MIB)] * 3


def test_one_turn_takes_a_part_of_many_requests(bench: Bench) -> None:
    port = bench.port(NULL)
    port.hold()
    requests = [port.send(READ, number * 512, 64 * 1024) for number in range(60)]
    port.release()
    for request in requests:
        assert request.wait() == bytes(64 * 1024)
    assert port.stats()["sweeps"] >= 3

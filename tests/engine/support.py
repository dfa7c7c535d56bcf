# SPDX-License-Identifier: Apache-2.0
"""The engine on a bench: its C interface, driven without an event loop.

A `Rig` is an engine thread with queues, each with its driver. What Python would be asked comes out
of `Rig.take`, and `EngineQueue.complete` answers it.
"""

from __future__ import annotations

import os
import platform
import select
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from tests.frontend.memory import Memory
from tests.frontend.ring import DriverRing, Segment
from tests.virtio_blk.support import MIB, UNSET, Pending, header
from tests.virtqueue.kinds import current_kind
from tests.virtqueue.support import map_memory, vring_config
from vhostblk.block.io.iovec import view_memory
from vhostblk.engine import load
from vhostblk.engine.layouts import IOVEC, STATS, UPCALL
from vhostblk.engine.maps import encode_map
from vhostblk.virtio_blk.layout import RequestType

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from vhostblk.engine import Engine
    from vhostblk.engine.budget import EngineBudget
    from vhostblk.engine.extents import ExtentMap
    from vhostblk.virtqueue.memory import GuestMemory

TIMEOUT = 20.0

#: The first of a port's own kinds of tasks, and the types of virtio-blk requests that are tasks.
OTHER = 256
_TYPES = {0: RequestType.IN, 1: RequestType.OUT, 2: RequestType.FLUSH}

#: The number of the system call futex(2).
_FUTEX = {"x86_64": "202", "aarch64": "98"}[platform.machine()]


def spend(budget: EngineBudget, direction: int, size: int, now: int) -> bool:
    """Take from a budget as an iothread does: at once, or not at all."""
    engine = load()
    assert engine is not None
    return bool(engine.lib.vb_budget_spend(budget.handle, direction, size, now))


class CpuTime(NamedTuple):
    """What a thread has used, in clock ticks."""

    user: int
    system: int

    @classmethod
    def of(cls, thread_id: int) -> CpuTime:
        fields = Path(f"/proc/self/task/{thread_id}/stat").read_text().rsplit(")", 1)[1].split()
        return cls(int(fields[11]), int(fields[12]))


class Upcall(NamedTuple):
    """A request that came up."""

    tag: int
    kind: int
    #: In bytes; of a port's own kinds whatever they have.
    offset: int
    flags: int
    #: (host address, length)
    segments: list[tuple[int, int]]

    @property
    def head(self) -> int:
        return self.tag

    @property
    def type(self) -> int:
        """The type of a virtio-blk request."""
        return _TYPES.get(self.kind, self.kind - OTHER)

    @property
    def sector(self) -> int:
        return self.offset // 512 if self.kind in _TYPES else self.offset

    def payload(self) -> bytes:
        return b"".join(bytes(view_memory(base, length)) for base, length in self.segments)


def regions_of(ffi: Any, memory: GuestMemory) -> tuple[Any, int]:
    """Return a memory table as the engine takes it."""
    regions = [(r.guest_addr, r.size, r.mapping.address) for r in memory.regions]
    return ffi.new("struct vb_region[]", regions), len(regions)


def make_request(
    ring: DriverRing,
    kind: int,
    sector: int = 0,
    *,
    send: bytes = b"",
    want: int = 0,
    pieces: int = 1,
    kick: bool = True,
    align: int = 16,
) -> Pending:
    """Make a request available, its data in `pieces` descriptors of equal length."""
    memory = ring.memory
    head_addr, status = memory.allocate(16), memory.allocate(1, 1)
    memory.write(head_addr, header(kind, sector))
    memory.write(status, bytes([UNSET]))
    length = len(send) or want
    data = memory.allocate(max(length, 1), align)
    memory.write(data, send or bytes([UNSET]) * want)
    step = length // pieces
    chain = [Segment(head_addr, 16)]
    if length:
        chain += [Segment(data + at, step, not send) for at in range(0, length, step)]
    chain.append(Segment(status, 1, True))
    head = ring.add(chain, indirect=len(chain) > ring.size // 4)
    if kick:
        ring.kick(force=True)
    return Pending(memory, head, data, length, status)


class EngineQueue:
    """A queue in the engine and its driver."""

    def __init__(
        self,
        rig: Rig,
        *,
        size: int = 16,
        device_size: int = MIB,
        block: int = 512,
        writable: bool = True,
        write_through: bool = False,
        kick: bool = True,
        event_idx: bool = False,
        start: int = 0,
    ) -> None:
        self.rig = rig
        self.ring = current_kind().driver(rig.memory, size, event_idx=event_idx, start=start)
        self._settings = {
            "device_size": device_size,
            "logical_block_size": block,
            "kick_fd": self.ring.kick_fd if kick else -1,
            "writable": writable,
            "write_through": write_through,
            "serial": b"serial".ljust(20, b"\0"),
        }
        self._event_idx = event_idx
        self._map: Any = rig.ffi.NULL
        #: Maps that requests in flight may still go by.
        self._former: list[Any] = []
        os.set_blocking(self.ring.kick_fd, False)
        self.open()

    def open(self) -> None:
        """Begin where the ring is now; held."""
        rig = self.rig
        config = vring_config(self.ring, rig.memory)
        ring = current_kind().device(config, rig.mapped, event_idx=self._event_idx)
        encoded = rig.ffi.new(
            "struct vb_queue_config *", {"ring": ring.addresses(), **self._settings}
        )
        regions, count = regions_of(rig.ffi, rig.mapped)
        self.handle = rig.lib.vb_queue_new(rig.thread, encoded, regions, count)
        assert self.handle
        self.port = rig.lib.vb_queue_port(self.handle)
        rig.lib.vb_port_set_map(self.port, self._map)
        assert not rig.lib.vb_queue_set_call(self.handle, self.ring.call_fd)
        rig.lib.vb_port_open(self.port)

    def close(self) -> int:
        """Finish what is in flight and free the queue; return the base to go on from."""
        self.hold()
        self.wait_idle()
        base: int = self.rig.lib.vb_queue_base(self.handle)
        self.rig.lib.vb_port_close(self.port)
        self.handle = self.port = self.rig.ffi.NULL
        return base

    def set_map(self, extents: ExtentMap | None) -> None:
        self.use_map(
            self.rig.ffi.NULL
            if extents is None
            else encode_map(self.rig.ffi, self.rig.lib, extents)
        )

    def use_map(self, encoded: Any) -> None:
        """Go by a `struct vb_extent_map`."""
        self.rig.lib.vb_port_set_map(self.port, encoded)
        self._former.append(self._map)
        self._map = encoded

    def hold(self) -> None:
        self.rig.lib.vb_port_hold(self.port)

    def release(self) -> None:
        self.rig.lib.vb_port_release(self.port)

    @property
    def in_flight(self) -> int:
        """How many requests are in flight, when all commands up to now have run."""
        self.rig.wait_until(lambda: not self.rig.lib.vb_port_pending(self.port))
        count: int = self.rig.lib.vb_port_in_flight(self.port)
        return count

    def wait_idle(self) -> None:
        """Wait until nothing is in flight; held."""
        while self.in_flight:
            self.rig.wait_news()

    @property
    def broken(self) -> str:
        """Why the ring is broken; empty: it isn't."""
        reason = self.rig.lib.vb_port_broken(self.port)
        return self.rig.ffi.string(reason).decode() if reason else ""

    def stats(self) -> np.void:
        """Copy the statistics, once the thread has finished its turn."""
        self.rig.lib.vb_port_hold(self.port)
        self.rig.lib.vb_port_release(self.port)
        assert self.in_flight >= 0
        buffer = self.rig.ffi.buffer(self.rig.lib.vb_port_stats(self.port), STATS.itemsize)
        record: np.void = np.frombuffer(bytes(buffer), STATS)[0]
        return record

    def request(self, kind: int, sector: int = 0, **how: Any) -> Pending:
        """Make a request available."""
        return make_request(self.ring, kind, sector, **how)

    def used(self, count: int = 1) -> list[tuple[int, int]]:
        """Wait for `count` completions; return (head, length) of each."""
        done: list[tuple[int, int]] = []
        while len(done) < count:
            done += [(used.head, used.length) for used in self.ring.wait(TIMEOUT)]
        assert len(done) == count
        return done

    def run(self, kind: int, sector: int = 0, **how: Any) -> Pending:
        """Run one request alone."""
        pending = self.request(kind, sector, **how)
        self.used()
        return pending

    def complete(self, upcall: Upcall, status: int = 0, written: int = 0) -> None:
        """Answer a request that came up."""
        ffi = self.rig.ffi
        self.rig.lib.vb_port_complete(
            self.port,
            1,
            ffi.new("uint16_t *", upcall.tag),
            ffi.new("uint8_t *", status),
            ffi.new("uint32_t *", written),
        )


class Rig:
    """An engine thread, guest memory, and queues."""

    def __init__(
        self,
        io: str = "uring",
        *,
        poll_ns: int = 0,
        max_batch: int = 0,
        layout: Sequence[tuple[int, int]] = ((0, 256 * 1024), (1 << 32, 8 * MIB)),
        engine: Engine | None = None,
    ) -> None:
        """`engine` is another one than usual."""
        engine = engine or load()
        assert engine is not None
        self.ffi, self.lib = engine
        self.memory = Memory(layout)
        self.mapped = map_memory(self.memory)
        self.news_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        config = {
            "poll_max_ns": poll_ns,
            "max_batch": max_batch,
            "pool_threads": 2,
            "no_uring": io == "pool",
            "name": b"IO test",
            "upcall_fd": self.news_fd,
        }
        error = self.ffi.new("int *")
        self.thread = self.lib.vb_iothread_new(
            self.ffi.new("struct vb_iothread_config *", config), error
        )
        assert self.thread, os.strerror(error[0])
        self.queues: list[EngineQueue] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for queue in self.queues:
            if queue.handle:
                queue.hold()
                self.answer_all(queue)
                queue.close()
            queue.ring.close()
        self.lib.vb_iothread_free(self.thread)
        os.close(self.news_fd)
        self.memory.close()

    def answer_all(self, queue: EngineQueue) -> None:
        """Fail whatever the test left unanswered."""
        while queue.in_flight:
            for upcall in self.take_all():
                queue.complete(upcall, 1)
            if queue.in_flight:
                self.wait_news()

    def queue(self, extents: ExtentMap | None = None, **settings: Any) -> EngineQueue:
        """Make a queue and let it begin."""
        queue = EngineQueue(self, **settings)
        self.queues.append(queue)
        queue.set_map(extents)
        queue.release()
        self.forget_news()
        return queue

    def forget_news(self) -> None:
        """Wait until the thread has told everything that it has to tell now, and forget it."""
        report = self.ffi.new("struct vb_report *")

        def sleeps() -> bool:
            self.lib.vb_iothread_report(self.thread, report)
            return bool(report.doing == self.lib.VB_DOING_SLEEP)

        pending = self.lib.vb_port_pending
        self.wait_until(lambda: not any(pending(queue.port) for queue in self.queues if queue.port))
        self.wait_until(sleeps)
        if select.select([self.news_fd], [], [], 0)[0]:
            self.wait_news()

    def look(self) -> int:
        """Look for requests in the thread's place, between two of its turns."""
        found = -1

        def looked() -> bool:
            nonlocal found
            found = int(self.lib.vb_upcalls_look(self.thread))
            return found >= 0

        self.wait_until(looked)
        return found

    def wait_news(self, timeout: float = TIMEOUT) -> None:
        """Wait until the engine has something to say, and let it say more."""
        assert select.select([self.news_fd], [], [], timeout)[0], "no news from the engine"
        os.eventfd_read(self.news_fd)
        self.lib.vb_news_take(self.thread, self.ffi.new("struct vb_port *[]", 64), 64)

    def take(self, limit: int = 64, segments: int = 65536) -> list[Upcall]:
        """Take requests that have come up, without waiting."""
        records = np.zeros(limit, UPCALL)
        port = np.zeros(1, np.uint64)
        iovs = np.zeros(segments, IOVEC)
        count = self.lib.vb_upcalls_take(
            self.thread,
            limit,
            self.ffi.from_buffer("struct vb_upcall *", records),
            self.ffi.from_buffer("struct vb_port **", port),
            segments,
            self.ffi.from_buffer("uint64_t *", iovs),
        )
        taken = []
        for record in records[:count]:
            first = int(record["iov_first"])
            rows: list[tuple[int, int]] = iovs[first : first + int(record["iov_count"])].tolist()
            assert sum(length for _, length in rows) == record["length"]
            tag, kind, offset, flags = (
                int(record[name]) for name in ("tag", "kind", "offset", "flags")
            )
            taken.append(Upcall(tag, kind, offset, flags, rows))
        return taken

    def take_all(self) -> list[Upcall]:
        """Take everything that has come up, without waiting."""
        taken: list[Upcall] = []
        while more := self.take():
            taken += more
        return taken

    def wait_upcalls(self, count: int = 1) -> list[Upcall]:
        """Wait for `count` requests to come up."""
        taken = self.take_all()
        while len(taken) < count:
            self.wait_news()
            taken += self.take_all()
        assert len(taken) == count
        return taken

    def wait_upcalls_until_asleep(self, count: int) -> list[Upcall]:
        """Wait for `count` requests, and take what has come once the engine's thread sleeps."""
        taken = self.take_all()
        while len(taken) < count:
            self.wait_news()
            taken += self.take_all()
        self.wait_until(self._is_asleep)
        return taken + self.take_all()

    def _is_asleep(self) -> bool:
        """Return whether the engine's thread waits for work, not for a lock."""
        thread = self.lib.vb_iothread_thread_id(self.thread)
        call = Path(f"/proc/self/task/{thread}/syscall").read_text().split()[0]
        return call not in ("running", _FUTEX)

    def cpu_time(self) -> int:
        """Return what the engine thread has used, in clock ticks."""
        return sum(CpuTime.of(self.lib.vb_iothread_thread_id(self.thread)))

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait for what the engine does without telling."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)

# SPDX-License-Identifier: Apache-2.0
"""A queue with its driver, and the processes (*lives*) that serve it one after the other.

A *moment* is the content of shared memory before one of a process's stores, with the state of the
driver at that time. The next process starts from a moment, and from nothing else.
"""

from __future__ import annotations

import copy
import logging
import os
from abc import ABC, abstractmethod
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tests.frontend.memory import Memory
from tests.frontend.ring import Segment
from tests.stores import engine
from tests.stores.tape import Tape, picture_of, recorded, restore
from tests.virtio_blk.support import HandNode, attach, header, make_device
from tests.virtqueue.kinds import KINDS
from tests.virtqueue.reference import chains_of
from tests.virtqueue.support import map_memory, vring_config
from vhostblk.ratelimit import RateLimitedLogger
from vhostblk.virtio_blk.express import ExpressQueue
from vhostblk.virtio_blk.layout import RequestType
from vhostblk.virtio_blk.runner import Completed
from vhostblk.virtqueue.config import InflightDescription
from vhostblk.virtqueue.errors import ChainFault
from vhostblk.virtqueue.inflight_area import InflightArea
from vhostblk.virtqueue.ring import inflight_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.frontend.ring import DriverRing
    from vhostblk.virtqueue.ring import Ring

SIZE = 8


class Moment(NamedTuple):
    """The content of memory, the driver, and the requests that it waits for, in ring order."""

    picture: bytes
    driver: DriverRing
    waiting: tuple[int, ...]
    requests: dict[int, list[Segment]]


class World:
    """The state that outlives processes: guest memory with a ring, and the in-flight record."""

    def __init__(self, *, packed: bool, start: int, garbage: bool = False) -> None:
        """`garbage`: the memory of the record has garbage, except a version 0: a new record."""
        self.packed = packed
        self.memory = Memory(((0, 1 << 16),))
        self.driver = KINDS["packed" if packed else "split"].driver(self.memory, SIZE, start=start)
        self.waiting: list[int] = []
        #: The segments of each request, by its head: guest address, length, writable.
        self.requests: dict[int, list[Segment]] = {}
        self.mapped = map_memory(self.memory)
        size = inflight_bytes(packed=packed)(SIZE) + 63 & ~63
        fd = os.memfd_create("record", os.MFD_CLOEXEC)
        os.pwrite(fd, bytes(10).ljust(size, b"\1" if garbage else b"\0"), 0)
        self._area = InflightArea(InflightDescription(size, 0, 1, SIZE, fd))
        os.close(fd)
        self._config = vring_config(self.driver, self.memory)
        record = self._area.part(0, inflight_bytes(packed=packed))
        assert record is not None
        base, _ = self.mapped.regions[0].mapping.pages
        # Exactly the memory of the ring that driver and device write, and the record.
        self.areas = [(base, self.memory._regions[0].next_free), (record.address, record.size)]

    def close(self) -> None:
        self.driver.close()
        self.memory.close()

    def ring(self) -> Ring:
        """Make a ring from the present memory, as a starting process does."""
        part = self._area.part(0, inflight_bytes(packed=self.packed))
        kind = KINDS["packed" if self.packed else "split"].device
        return kind(self._config, self.mapped, event_idx=False, inflight=part)

    # The driver

    def offer(self, pieces: int) -> int | None:
        """Make a request available that goes up to Python; return its head, or None if full."""
        if self.driver.free < pieces + 1:
            return None
        request = self.memory.allocate(16 + 1)
        self.memory.write(request, header(RequestType.FLUSH))
        cut = [0, *(16 * n // pieces for n in range(1, pieces)), 16]
        segments = [Segment(request + a, b - a) for a, b in pairwise(cut)]
        segments.append(Segment(request + 16, 1, True))
        head = self.driver.add(segments)
        self.driver.publish()
        self.waiting.append(head)
        self.requests[head] = segments
        return head

    def see_used(self) -> list[int]:
        """Take used requests; one that the driver doesn't wait for is an error."""
        used = [element.head for element in self.driver.poll()]
        for head in used:
            self.waiting.remove(head)
        return used

    def take(self, ring: Ring) -> list[int]:
        """Take all available requests, and compare them with the driver's; return the heads."""
        taken: list[int] = []
        base, _ = self.areas[0]
        while (batch := ring.pop(3)) is not None:
            for chain in chains_of(batch):
                assert chain.fault == ChainFault.NONE
                segments = [(s.host - base, s.length, s.writable) for s in chain.segments]
                assert segments == self.requests[chain.head]
                taken.append(chain.head)
        return taken

    # Moments

    def moments(self, pictures: list[bytes]) -> list[Moment]:
        """Make moments from pictures; the driver's state has not changed since they were taken."""
        driver, waiting, requests = remember(self.driver), tuple(self.waiting), self.requests
        return [Moment(picture, driver, waiting, dict(requests)) for picture in pictures]

    def now(self) -> Moment:
        return self.moments([picture_of(self.areas)])[0]

    def return_to(self, moment: Moment) -> None:
        restore(self.areas, moment.picture)
        self.driver = remember(moment.driver)
        self.waiting = list(moment.waiting)
        self.requests = dict(moment.requests)


def remember(driver: DriverRing) -> DriverRing:
    """Copy the state of a driver; the ring itself is shared."""
    other = copy.copy(driver)
    for name, value in vars(driver).items():
        if isinstance(value, (list, dict)):
            setattr(other, name, copy.deepcopy(value))
    return other


class Life(ABC):
    """A process that serves the queue; it starts from the state that an earlier one has left."""

    def __init__(self, world: World) -> None:
        self.world = world
        #: Heads that were taken and not completed.
        self.mine: list[int] = []
        #: Heads that were completed and not seen by the driver.
        self.unseen: list[int] = []

    @abstractmethod
    def begin(self) -> None:
        """Start: read the record."""

    @abstractmethod
    def take(self) -> list[int]:
        """Take all available requests; return the heads, in order."""

    @abstractmethod
    def give_back(self, heads: list[int]) -> None:
        """Complete requests, as one burst."""

    @abstractmethod
    def pictures(self) -> list[bytes]:
        """Return the pictures taken since the last call."""

    @abstractmethod
    def end(self) -> None:
        """Release the queue without any store, as if the process were killed."""


class PythonLife(Life):
    """A life on the Python lane."""

    def __init__(self, world: World, tape: Tape) -> None:
        super().__init__(world)
        self._tape = tape
        self._ring: Ring

    def begin(self) -> None:
        self._ring = self.world.ring()

    def take(self) -> list[int]:
        taken = self.world.take(self._ring)
        self.mine += taken
        return taken

    def give_back(self, heads: list[int]) -> None:
        self._ring.push(np.array(heads, np.uint16), np.ones(len(heads), np.uint32))
        self.mine = [head for head in self.mine if head not in heads]
        self.unseen += heads

    def pictures(self) -> list[bytes]:
        return self._tape.take_all()

    def end(self) -> None:
        """Do nothing: there is nothing to release."""


class EngineLife(Life):
    """A life on the express lane: requests come up to Python, and are completed in bursts."""

    def __init__(self, world: World, tape: Tape) -> None:
        super().__init__(world)
        self._tape = tape
        self._thread: Any = engine.TracedThread()
        self._queue: ExpressQueue

    def begin(self) -> None:
        log = RateLimitedLogger(logging.getLogger(__name__), "test: ")
        device = make_device(attach(HandNode()))
        self._queue = ExpressQueue(0, self.world.ring(), device, None, log, self._thread)
        self._queue.start()

    def take(self) -> list[int]:
        self._thread.turn()
        ffi, lib = self._thread.ffi, self._thread.lib
        records = ffi.new("struct vb_upcall[]", SIZE)
        port, iovs = ffi.new("struct vb_port **"), ffi.new("uint64_t[]", 128)
        taken: list[int] = []
        while count := lib.vb_upcalls_take(self._thread.handle, SIZE, records, port, 64, iovs):
            taken += [records[number].tag for number in range(count)]
        self.mine += taken
        return taken

    def give_back(self, heads: list[int]) -> None:
        number = len(heads)
        zeroes = np.zeros(number, np.uint64)
        completed = Completed(
            np.array(heads, np.uint16), zeroes, zeroes, np.zeros(number, np.uint8)
        )
        self._queue._publish(completed)
        self.mine = [head for head in self.mine if head not in heads]
        self.unseen += heads

    def pictures(self) -> list[bytes]:
        stored = engine.pictures(sum(length for _, length in self.world.areas))
        return self._tape.take_all() + stored  # Python reads the record, before anything else

    def end(self) -> None:
        """Complete requests in flight, in memory that nobody uses any more, and free the queue."""
        before = picture_of(self.world.areas)
        engine.watch([])
        self._queue.hold()
        self.take()
        self.give_back(self.mine)
        self._thread.lib.vb_port_close(self._queue._port)
        self._queue._queue = self._thread.ffi.NULL
        restore(self.world.areas, before)


@contextmanager
def living(world: World, lane: str) -> Iterator[Life]:
    """Start a life in which every store is recorded."""
    with recorded(world.areas) as tape:
        life: Life
        if lane == "python":
            life = PythonLife(world, tape)
        else:
            engine.watch(world.areas)
            life = EngineLife(world, tape)
        life.begin()
        try:
            yield life
        finally:
            life.end()

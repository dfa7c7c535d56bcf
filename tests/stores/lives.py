# SPDX-License-Identifier: Apache-2.0
"""A queue with its driver, and the lives of the processes that serve it, one after the other.

A *moment* is what shared memory holds before one of a process's stores, together with what the
driver knows then. Whoever comes next begins with no more than that.
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
from vhostblk.vhost_user.backend import InflightDescription
from vhostblk.vhost_user.inflight import InflightArea
from vhostblk.virtio_blk.express import ExpressQueue
from vhostblk.virtio_blk.layout import RequestType
from vhostblk.virtio_blk.runner import Completed
from vhostblk.virtqueue.errors import ChainFault
from vhostblk.virtqueue.ring import inflight_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.frontend.ring import DriverRing
    from vhostblk.virtqueue.ring import Ring

SIZE = 8


class Moment(NamedTuple):
    """Memory, the driver, and its requests; those that it waits for, in the order of the ring."""

    picture: bytes
    driver: DriverRing
    waiting: tuple[int, ...]
    requests: dict[int, list[Segment]]


class World:
    """What outlives processes: guest memory with a ring, and the record of requests in flight."""

    def __init__(self, *, packed: bool, start: int, garbage: bool = False) -> None:
        """`garbage`: the record was something else before; its version says that it is new."""
        self.packed = packed
        self.memory = Memory(((0, 1 << 16),))
        self.driver = KINDS["packed" if packed else "split"].driver(self.memory, SIZE, start=start)
        self.waiting: list[int] = []
        #: What each request is made of, by its head: guest address, length, writable.
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
        # All that driver and device write of the ring, and nothing else.
        self.areas = [(base, self.memory._regions[0].next_free), (record.address, record.size)]

    def close(self) -> None:
        self.driver.close()
        self.memory.close()

    def ring(self) -> Ring:
        """Read what there is, as a process does that starts."""
        part = self._area.part(0, inflight_bytes(packed=self.packed))
        kind = KINDS["packed" if self.packed else "split"].device
        return kind(self._config, self.mapped, event_idx=False, inflight=part)

    # The driver

    def offer(self, pieces: int) -> int | None:
        """Make a request available that goes up to Python; return its head where there is room."""
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
        """Take what the device has used; what was not waited for is a mistake."""
        used = [element.head for element in self.driver.poll()]
        for head in used:
            self.waiting.remove(head)
        return used

    def take(self, ring: Ring) -> list[int]:
        """Take all that there is, which has to be what the driver has made; return the heads."""
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
        """Say what the driver knew, who has not moved since, when pictures were taken."""
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
    """Copy what a driver knows; the ring itself is the same."""
    other = copy.copy(driver)
    for name, value in vars(driver).items():
        if isinstance(value, (list, dict)):
            setattr(other, name, copy.deepcopy(value))
    return other


class Life(ABC):
    """A process that serves the queue; it begins with what an earlier one has left."""

    def __init__(self, world: World) -> None:
        self.world = world
        #: Taken, and not given back.
        self.mine: list[int] = []
        #: Given back, and not seen by the driver.
        self.unseen: list[int] = []

    @abstractmethod
    def begin(self) -> None:
        """Read the record."""

    @abstractmethod
    def take(self) -> list[int]:
        """Take what there is, and return the heads, in their order."""

    @abstractmethod
    def give_back(self, heads: list[int]) -> None:
        """Complete requests, as one burst."""

    @abstractmethod
    def pictures(self) -> list[bytes]:
        """Return those taken since the last time."""

    @abstractmethod
    def end(self) -> None:
        """Let go of the queue without a word, as a process that is killed."""


class PythonLife(Life):
    """On the Python lane."""

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
        """Do nothing: there is nothing to let go of."""


class EngineLife(Life):
    """On the express lane: requests come up, and go back down in bursts."""

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
        records = ffi.new("struct vb_request[]", SIZE)
        queue, iovs = ffi.new("struct vb_queue **"), ffi.new("uint64_t[]", 128)
        taken: list[int] = []
        while count := lib.vb_upcalls_take(self._thread.handle, SIZE, records, queue, 64, iovs):
            taken += [records[number].head for number in range(count)]
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
        """Answer what is in flight, in memory that is nobody's any more, and free the queue."""
        before = picture_of(self.world.areas)
        engine.watch([])
        self._queue.hold()
        self.take()
        self.give_back(self.mine)
        self._thread.lib.vb_queue_free(self._queue._queue)
        self._queue._queue = self._thread.ffi.NULL
        restore(self.world.areas, before)


@contextmanager
def living(world: World, lane: str) -> Iterator[Life]:
    """Begin a life in which every store is recorded."""
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

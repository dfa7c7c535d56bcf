# SPDX-License-Identifier: Apache-2.0
"""A device for tests: a disk whose requests finish by hand, a queue, and its driver."""

from __future__ import annotations

import asyncio
import logging
import os
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tests.descriptors import open_fds
from tests.frontend.memory import Memory
from tests.frontend.ring import DriverRing, Segment
from tests.virtqueue.support import map_memory, vring_config
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.node import BlockNode
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.completion import Completion
from vhostblk.block.io.flags import WriteFlags
from vhostblk.engine.iothreads import Iothreads
from vhostblk.ratelimit import RateLimitedLogger
from vhostblk.schema.blockdev import BlockdevDiscardOptions
from vhostblk.schema.drivers.null import BlockdevOptionsNull
from vhostblk.virtio_blk.device import BlkDevice
from vhostblk.virtio_blk.lane import Lane, choose_lane
from vhostblk.virtio_blk.queue import BlkQueue
from vhostblk.virtqueue.split import SplitQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from vhostblk.block.io.iovec import IoVec
    from vhostblk.virtio_blk.express import ExpressQueue

MIB = 1 << 20

#: A status byte that nobody has written.
UNSET = 0xEE


class HandNode(BlockNode):
    """A disk in memory; while `by_hand`, requests wait until the test finishes them."""

    driver = "null-co"

    def __init__(self, size: int = MIB) -> None:
        discard = BlockdevDiscardOptions.UNMAP
        super().__init__("disk", BlockdevOptionsNull(node_name="disk", discard=discard))
        self.native_flags = WriteFlags.FUA | WriteFlags.MAY_UNMAP
        self.data = bytearray(size)
        self.by_hand = False
        self.waiting: list[Completion[None]] = []
        self.log: list[str] = []
        self.error: BaseException | None = None

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        raise NotImplementedError

    @property
    def size(self) -> int:
        return len(self.data)

    async def _turn(self, what: str) -> None:
        self.log.append(what)
        if self.by_hand:
            done: Completion[None] = Completion()
            self.waiting.append(done)
            await done
        if self.error is not None:
            raise self.error

    def finish(self, which: int = 0) -> None:
        """Let one waiting request go on."""
        self.waiting.pop(which).set_result(None)

    def finish_all(self) -> None:
        self.by_hand = False
        while self.waiting:
            self.finish()

    async def preadv(self, offset: int, iov: IoVec) -> None:
        await self._turn(f"read {offset}+{iov.nbytes}")
        iov.copy_from(self.data[offset : offset + iov.nbytes])

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        await self._turn(f"write {offset}+{iov.nbytes}" + " fua" * bool(flags & WriteFlags.FUA))
        self.data[offset : offset + iov.nbytes] = iov.to_bytes()

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        what = f"zero {offset}+{length}" + " unmap" * bool(flags & WriteFlags.MAY_UNMAP)
        await self._turn(what + " fua" * bool(flags & WriteFlags.FUA))
        self.data[offset : offset + length] = bytes(length)

    async def pdiscard(self, offset: int, length: int) -> None:
        await self._turn(f"discard {offset}+{length}")

    async def flush(self) -> None:
        await self._turn("flush")


def attach(
    node: BlockNode,
    *,
    writable: bool = True,
    graph: Graph | None = None,
    allow_inactive: bool = False,
) -> BlockBackend:
    """Make a block backend on a node."""
    perm = Perm.CONSISTENT_READ | (Perm.WRITE if writable else Perm.NONE)
    backend = BlockBackend("disk", perm)
    backend.allow_inactive = allow_inactive
    backend.attach(graph or Graph(), node)
    return backend


def make_device(
    backend: BlockBackend,
    *,
    writable: bool = True,
    block: int = 512,
    zoned: bool = False,
    refused: bool = False,
) -> BlkDevice:
    return BlkDevice(
        backend,
        serial=b"serial",
        writable=writable,
        logical_block_size=block,
        zoned=zoned,
        refused=refused,
    )


def header(kind: int, sector: int = 0) -> bytes:
    """Return a request's header."""
    return struct.pack("<IIQ", kind, 0, sector)


class Pending:
    """A request that the driver has made."""

    def __init__(
        self, memory: Memory, head: int, data: int, length: int, status: int, header: int = 0
    ) -> None:
        self._memory = memory
        self.head = head
        #: Guest address of the header, where that is known.
        self.header_address = header
        #: Guest address of the data.
        self.address = data
        self._length, self._status = length, status

    @property
    def status(self) -> int:
        return self._memory.read(self._status, 1)[0]

    @property
    def data(self) -> bytes:
        return self._memory.read(self.address, self._length)


class Bench:
    """A queue on a bench: the driver's ring and memory, the device's queue and its disk."""

    def __init__(
        self,
        node: BlockNode,
        *,
        size: int = 16,
        writable: bool = True,
        block: int = 512,
        kick: bool = True,
        event_idx: bool = False,
        zoned: bool = False,
        refused: bool = False,
    ) -> None:
        self.memory = Memory(((0, 256 * 1024), (1 << 32, 4 * MIB)))
        self.ring = DriverRing(self.memory, size, event_idx=event_idx)
        self.node = node
        self.backend = attach(node, writable=writable)
        self.mapped = map_memory(self.memory)
        split = SplitQueue(vring_config(self.ring, self.memory), self.mapped, event_idx=event_idx)
        logger = logging.getLogger("tests.virtio_blk")
        log = RateLimitedLogger(logger, "test: ")
        device = make_device(
            self.backend, writable=writable, block=block, zoned=zoned, refused=refused
        )
        kick_fd = os.dup(self.ring.kick_fd) if kick else None
        self.iothreads = Iothreads()
        self.stopped: int | None = None
        self.queue: BlkQueue | ExpressQueue
        if choose_lane() is Lane.PYTHON:
            self.queue = BlkQueue(0, split, device, kick_fd, log)
        else:
            from vhostblk.virtio_blk.express import ExpressQueue

            (iothread,) = self.iothreads.start([])
            self.queue = ExpressQueue(0, split, device, kick_fd, log, iothread)
        os.set_blocking(self.ring.kick_fd, False)

    def request(
        self, kind: int, sector: int = 0, *, send: bytes = b"", want: int = 0, kick: bool = True
    ) -> Pending:
        """Make an ordinary request available."""
        head_addr = self.memory.allocate(16)
        self.memory.write(head_addr, header(kind, sector))
        status = self.memory.allocate(1, 1)
        self.memory.write(status, bytes([UNSET]))
        chain = [Segment(head_addr, 16)]
        data = self.memory.allocate(max(len(send) + want, 1))
        if send:
            self.memory.write(data, send)
            chain.append(Segment(data, len(send)))
        if want:
            chain.append(Segment(data, want, True))
        chain.append(Segment(status, 1, True))
        return self.chain(chain, data=data, length=len(send) + want, status=status, kick=kick)

    def chain(
        self,
        segments: Sequence[Segment],
        *,
        data: int = 0,
        length: int = 0,
        status: int = 0,
        kick: bool = True,
    ) -> Pending:
        """Make any chain available."""
        head = self.ring.add(segments)
        if kick:
            self.ring.kick(force=True)
        return Pending(self.memory, head, data, length, status)

    async def stop(self) -> int:
        """Stop the queue, once; return its next avail index."""
        if self.stopped is None:
            self.stopped = await self.queue.stop()
        return self.stopped

    def bytes_at(self, content: bytes) -> int:
        """Put content in guest memory; return its address."""
        addr = self.memory.allocate(len(content))
        self.memory.write(addr, content)
        return addr

    async def used(self, count: int = 1) -> list[tuple[int, int]]:
        """Wait until the device has used `count` chains; return (head, length) of each."""
        done: list[tuple[int, int]] = []
        async with asyncio.timeout(20):
            while len(done) < count:
                done += [(used.head, used.length) for used in self.ring.poll()]
                await asyncio.sleep(0)
        assert len(done) == count
        return done

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the loop turn until something holds."""
        async with asyncio.timeout(20):
            while True:
                if condition():
                    return
                await asyncio.sleep(0)


async def turns(count: int = 50) -> None:
    """Let everything that is ready to run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


@asynccontextmanager
async def bench(node: BlockNode | None = None, **options: Any) -> AsyncIterator[Bench]:
    """Run a started queue."""
    bench = Bench(node or HandNode(), **options)
    bench.queue.start()
    try:
        yield bench
        if isinstance(bench.node, HandNode):
            bench.node.finish_all()
    finally:
        await bench.stop()
        bench.iothreads.close()
        bench.ring.close()
        bench.memory.close()
    assert bench.backend.in_flight == 0


def pattern(length: int, seed: int = 1) -> bytes:
    """Return bytes that differ from place to place."""
    return np.random.default_rng(seed).integers(0, 256, length, np.uint8).tobytes()


def eventfds() -> set[int]:
    """Return the numbers of this process's event descriptors (its loops have others)."""
    return open_fds("anon_inode:[eventfd]")

# SPDX-License-Identifier: Apache-2.0
"""The entry points of a guest's requests: the block backend, or an export that serves rings.

A `Guest` takes several requests at once, and calls `finish` of each when it is acknowledged.
Everything runs on one event loop, so that the Python lane does the same in each run.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.frontend.blk import FEATURES, PACKED_FEATURES, BlkDriver, BlkRequest, range_segments
from tests.frontend.connection import Connection
from tests.frontend.layout.virtio_blk import CONFIG_WRITEBACK_OFFSET, RequestType, Status
from tests.frontend.memory import Memory
from tests.model.content import SECTOR
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.completion import drive
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.iovec import IoVec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.model.program import Op
    from vhostblk.block.graph.node import BlockNode, Failures
    from vhostblk.daemon import Daemon

    Taking = Callable[[], AbstractContextManager[None]]

#: Kinds of requests that carry data.
WRITES = ("write", "fua", "packed", "blank")
#: Guest memory: rings, and data.
_LAYOUT = ((0, 1 << 20), (1 << 32, 128 << 20))
_RING = 128


@dataclass(eq=False)
class Request:
    """One request; `finish(data)` or `finish(None)` (it failed) is called once."""

    op: Op
    data: bytes
    finish: Callable[[bytes | None], object]

    @property
    def offset(self) -> int:
        return self.op.first * SECTOR

    @property
    def length(self) -> int:
        return self.op.length * SECTOR


class Guest(ABC):
    """An entry point of requests."""

    #: The first error found while completions were handled. It is raised later by the player.
    failure: BaseException | None = None
    #: The ring's length, which is the maximum queue depth.
    depth = _RING

    def finish(self, request: Request, data: bytes | None) -> None:
        """Call the request's `finish`; note an exception in `failure`."""
        try:
            request.finish(data)
        except AssertionError as wrong:
            wrong.__context__ = None  # an exception being handled here is unrelated
            self.failure = self.failure or wrong

    @abstractmethod
    def submit(self, requests: Sequence[Request]) -> None:
        """Start requests, all in one batch."""

    def poll(self) -> None:  # noqa: B027
        """Handle completions."""

    @abstractmethod
    async def set_write_cache(self, *, enabled: bool) -> None:
        """Turn the write cache on or off."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect, with nothing in flight; raises OSError if a last flush fails."""


class BackendGuest(Guest):
    """A guest that calls the block backend, as a device does."""

    def __init__(self, daemon: Daemon, node: BlockNode) -> None:
        self._backend = BlockBackend("guest", Perm.CONSISTENT_READ | Perm.WRITE)
        self._backend.request_alignment = SECTOR
        self._backend.attach(daemon.graph, node)
        #: Requests that came during a drained section.
        self._held: list[Request] = []
        self._backend.add_drain_listener(self)

    def drained_begin(self) -> None:
        """Do nothing: `submit` checks whether the backend is drained."""

    def drained_end(self) -> None:
        """Start the requests that came meanwhile."""
        held, self._held = self._held, []
        self.submit(held)

    def submit(self, requests: Sequence[Request]) -> None:
        backend = self._backend
        if backend.quiesced:
            self._held += requests
            return
        plain: list[Request] = []
        for request in requests:
            if request.op.kind in ("write", "blank"):
                plain.append(request)
                continue
            self._write(plain)
            plain = []
            backend.begin()
            drive(self._run(request), partial(self._done, request))
        self._write(plain)

    def _write(self, requests: list[Request]) -> None:
        """Write as a queue does: in one burst if possible."""
        backend = self._backend
        iovs = [IoVec.from_buffers([bytearray(each.data)]) for each in requests]
        together = None
        if len(requests) > 1 and backend.node.takes_bursts:
            together = backend.pwritev_burst([each.offset for each in requests], iovs)
        backend.begin(len(requests))
        if together is not None:
            drive(_wait(together), partial(self._burst_done, requests))
            return
        for request, iov in zip(requests, iovs, strict=True):
            drive(_write(backend, request.offset, iov), partial(self._done, request))

    def _burst_done(
        self, requests: list[Request], failures: Failures | None, error: BaseException | None
    ) -> None:
        for number, request in enumerate(requests):
            self._done(request, b"", error or (failures[number] if failures else None))

    async def _run(self, request: Request) -> bytes:
        backend, offset, length = self._backend, request.offset, request.length
        match request.op.kind:
            case "read":
                iov = IoVec.allocate(length)
                iov.fill(0xEE)
                await backend.preadv(offset, iov)
                return iov.to_bytes()
            case "fua" | "packed" as kind:
                flags = WriteFlags.FUA if kind == "fua" else WriteFlags.WRITE_COMPRESSED
                iov = IoVec.from_buffers([bytearray(request.data)])
                await backend.pwritev(offset, iov, flags)
            case "zero":
                await backend.pwrite_zeroes(offset, length)
            case "unmap":
                await backend.pwrite_zeroes(offset, length, WriteFlags.MAY_UNMAP)
            case "discard":
                await backend.pdiscard(offset, length)
            case "flush":
                await backend.flush()
            case other:
                raise AssertionError(other)
        return b""

    def _done(self, request: Request, data: bytes | None, error: BaseException | None) -> None:
        self._backend.end()
        if error is not None and not isinstance(error, OSError):
            self.failure = self.failure or error
        self.finish(request, None if error is not None else data or b"")

    async def set_write_cache(self, *, enabled: bool) -> None:
        self._backend.enable_write_cache = enabled

    async def close(self) -> None:
        try:
            await self._backend.flush()  # as an export does when it stops
        finally:
            await self._backend.detach()


async def _wait(together: Any) -> Failures:
    failures: Failures = await together
    return failures


async def _write(backend: BlockBackend, offset: int, iov: IoVec) -> bytes:
    await backend.pwritev(offset, iov)
    return b""


class QueueGuest(Guest):
    """A guest that is a virtio-blk driver, connected to an export."""

    def __init__(self, driver: BlkDriver, memory: Memory, taking: Taking) -> None:
        """`taking`: a context manager; completions are passed on inside it."""
        self._driver = driver
        self._memory = memory
        self._taking = taking
        self._requests: dict[int, Request] = {}
        self._next = 0
        self._loop = asyncio.get_running_loop()
        for number, ring in enumerate(driver.rings):
            os.set_blocking(ring.call_fd, False)
            self._loop.add_reader(ring.call_fd, self._called, number)
            ring.arm()

    @classmethod
    async def connect(cls, path: Path, queues: int, *, packed: bool, taking: Taking) -> QueueGuest:
        """Connect. The export runs on the same loop, so this doesn't block it."""
        memory = Memory(_LAYOUT)

        def negotiate() -> BlkDriver:
            return BlkDriver(
                Connection.connect(path),
                memory,
                num_queues=queues,
                queue_size=_RING,
                features=PACKED_FEATURES if packed else FEATURES,
                indirect=True,
            )

        return cls(await asyncio.to_thread(negotiate), memory, taking)

    def submit(self, requests: Sequence[Request]) -> None:
        driver = self._driver
        for request in requests:
            queue = self._next % len(driver.rings)
            self._next += 1
            made = self._submit(request, queue)
            self._requests[id(made)] = request
        for queue in range(len(driver.rings)):
            driver.kick(queue)

    def _submit(self, request: Request, queue: int) -> BlkRequest:
        driver, op, offset = self._driver, request.op, request.offset
        match op.kind:
            case "write" | "blank":
                # One segment, or several.
                step = max(request.length // (1 + op.first % 4) // SECTOR, 1) * SECTOR
                pieces = [request.data[at : at + step] for at in range(0, request.length, step)]
                return driver.submit(RequestType.OUT, offset, data_out=pieces, queue=queue)
            case "read":
                return driver.submit(RequestType.IN, offset, data_in=[request.length], queue=queue)
            case "flush":
                return driver.submit(RequestType.FLUSH, queue=queue)
            case "discard" | "zero" | "unmap" as kind:
                what = RequestType.DISCARD if kind == "discard" else RequestType.WRITE_ZEROES
                segments = range_segments([(offset, request.length)], int(kind == "unmap"))
                return driver.submit(what, data_out=[segments], queue=queue)
            case other:
                raise AssertionError(f"no request of a driver: {other}")

    def _called(self, number: int) -> None:
        try:
            os.eventfd_read(self._driver.rings[number].call_fd)
        except BlockingIOError:
            pass
        self.poll()

    def poll(self) -> None:
        done: list[tuple[BlkRequest, bytes]] = []
        for number, ring in enumerate(self._driver.rings):
            while ring.in_flight and ring.has_used():
                done += self._driver.poll(number)
                ring.arm()  # then check again for completions that came before
        if not done:
            return
        with self._taking():
            for made, data in done:
                read = data if made.status == Status.OK else None
                self.finish(self._requests.pop(id(made)), read)

    async def set_write_cache(self, *, enabled: bool) -> None:
        connection, value = self._driver.connection, bytes([enabled])
        await asyncio.to_thread(connection.set_config, CONFIG_WRITEBACK_OFFSET, value)

    async def close(self) -> None:
        for ring in self._driver.rings:
            self._loop.remove_reader(ring.call_fd)
        await asyncio.to_thread(self._driver.stop)
        self.poll()
        self._driver.close()
        self._memory.close()

# SPDX-License-Identifier: Apache-2.0
"""File I/O through io_uring.

An operation takes a free slot; the slot's number is its user data in the kernel. There are never
more operations in flight than slots, nor more slots than entries in the completion queue, so the
queue can't overflow. Operations without a slot wait in a backlog.

Operations that complete during submission (cached reads, mostly) are reaped right after it. An
eventfd, which the loop watches, announces the others.

A ring that the kernel refuses to serve (for example after a sandbox forbids it) is broken for good.
Operations that the kernel has not taken, and all later ones, fail with the error. Operations in the
kernel may still complete; if the ring can't be asked for completions either, they fail, too.
"""

# ruff: noqa: D102 -- the methods are described by the contract, `AioEngine`.

from __future__ import annotations

import logging
import os
from collections import deque
from typing import TYPE_CHECKING, Any

from vhostblk import engine as core
from vhostblk.block.aio.engine import AioEngine, AioUnavailableError
from vhostblk.block.io.completion import Completion
from vhostblk.errors import reason
from vhostblk.schema.common import BlockdevAioOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.block.io.iovec import IoVec

logger = logging.getLogger(__name__)

#: Number of submission queue entries, and of operations in flight.
QUEUE_ENTRIES = 256
SLOTS = 1024
#: Completions reaped in one call.
REAP_BATCH = 256


class UringEngine(AioEngine):
    """An io_uring and its slots."""

    kind = BlockdevAioOptions.IO_URING

    def __init__(self) -> None:
        super().__init__()
        compiled = core.load()
        if compiled is None:
            raise AioUnavailableError("the compiled engine is missing")
        self._lib: Any = compiled.lib
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        error = compiled.ffi.new("int *")
        self._ring: Any = self._lib.vb_aio_open(QUEUE_ENTRIES, SLOTS, self._event_fd, error)
        if self._ring == compiled.ffi.NULL:
            os.close(self._event_fd)
            raise AioUnavailableError(reason(error[0]))
        self._reaped: Any = compiled.ffi.new("struct vb_completion[]", REAP_BATCH)
        self._withdrawn: Any = compiled.ffi.new("uint32_t[]", QUEUE_ENTRIES)
        #: Number of slots of operations that failed with the ring and may still be in the kernel.
        self._lost = 0
        #: The negative errno that broke the ring, or 0.
        self._broken = 0
        self._unpack: Callable[[Any, int], list[Any]] = compiled.ffi.unpack
        self._free = list(range(SLOTS))
        #: By slot: the completion, and the memory in use.
        self._waiting: list[Completion[int] | None] = [None] * SLOTS
        self._memory: list[IoVec | None] = [None] * SLOTS
        self._queued = 0
        #: Operations without a slot: (completion, memory, function, arguments after the slot).
        self._backlog: deque[
            tuple[Completion[int], IoVec | None, Callable[..., int], tuple[Any, ...]]
        ] = deque()
        self.loop.add_reader(self._event_fd, self._on_event)

    def preadv(self, fd: int, iov: IoVec, offset: int) -> Completion[int]:
        return self._queue(self._lib.vb_aio_preadv, iov, fd, iov.address, iov.count, offset)

    def pwritev(self, fd: int, iov: IoVec, offset: int) -> Completion[int]:
        return self._queue(self._lib.vb_aio_pwritev, iov, fd, iov.address, iov.count, offset)

    def fdatasync(self, fd: int) -> Completion[int]:
        return self._queue(self._lib.vb_aio_fdatasync, None, fd)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> Completion[int]:
        return self._queue(self._lib.vb_aio_fallocate, None, fd, mode, offset, length)

    def _queue(
        self, function: Callable[..., int], memory: IoVec | None, *arguments: Any
    ) -> Completion[int]:
        completion: Completion[int] = Completion()
        if not self._free or self._backlog or self._broken:
            if self._broken:
                self._schedule_flush()
            self._backlog.append((completion, memory, function, arguments))
        else:
            self._start(completion, memory, function, arguments)
        return completion

    def _start(
        self,
        completion: Completion[int],
        memory: IoVec | None,
        function: Callable[..., int],
        arguments: tuple[Any, ...],
    ) -> None:
        slot = self._free[-1]
        if function(self._ring, slot, *arguments) < 0:  # the submission queue is full
            self._submit()
            if function(self._ring, slot, *arguments) < 0:
                self._backlog.append((completion, memory, function, arguments))
                self._schedule_flush()
                return
        self._free.pop()
        self._waiting[slot] = completion
        self._memory[slot] = memory
        self._queued += 1
        if self._queued >= self._max_batch:
            self._submit()
        if not self._flush_scheduled:
            self._schedule_flush()

    def flush(self) -> None:
        """Submit, and reap what has completed."""
        self._flush_scheduled = False
        if self._queued:
            self._submit()
        self._reap()

    def _submit(self) -> None:
        left = self._broken or self._lib.vb_aio_submit(self._ring)
        if left < 0:
            self._break(left)
            return
        self._queued = left
        if left:  # the kernel is out of memory, or completions must be reaped first
            self._schedule_flush()

    def _break(self, error: int) -> None:
        """Mark the ring as broken; `_reap` fails the remaining operations."""
        if not self._broken:
            logger.error("io_uring does not work any more: %s", reason(-error))
            self._broken = error
            self._schedule_flush()

    def _on_event(self) -> None:
        try:
            os.eventfd_read(self._event_fd)
        except BlockingIOError:
            pass
        self._reap()

    def _reap(self) -> None:
        """Complete the operations that have ended; their callbacks may queue new ones."""
        count = REAP_BATCH
        while count == REAP_BATCH:
            count = self._lib.vb_aio_reap(self._ring, self._reaped, REAP_BATCH)
            if count < 0:
                self._break(count)
            for done in self._unpack(self._reaped, count) if count > 0 else ():
                self._finish(done.slot, done.result)
            if self._broken:
                self._fail_queued()
                continue
            while self._backlog and self._free:
                left = len(self._backlog)
                self._start(*self._backlog.popleft())
                if len(self._backlog) == left:
                    self._backlog.rotate(1)
                    break
        if count < 0:
            self._fail_in_flight()

    def _fail_queued(self) -> None:
        """Fail the operations that have not reached the kernel, with the ring's error."""
        count = self._lib.vb_aio_withdraw(self._ring, self._withdrawn)
        self._queued = 0
        for slot in self._unpack(self._withdrawn, count) if count else ():
            self._finish(slot, self._broken)
        # Completing an operation may queue more, which are left to the next iteration.
        backlog, self._backlog = self._backlog, deque()
        for completion, *_ in backlog:
            self._complete(completion, self._broken)

    def _fail_in_flight(self) -> None:
        """Fail the operations in the kernel that can't be reaped; their slots are not reused.

        The kernel may still access their memory, so the engine keeps it alive.
        """
        for slot, completion in enumerate(self._waiting):
            if completion is not None:
                self._waiting[slot] = None
                self._lost += 1
                self._complete(completion, self._broken)

    def _finish(self, slot: int, result: int) -> None:
        completion = self._waiting[slot]
        assert completion is not None, "a slot is in flight once"
        self._waiting[slot] = None
        self._memory[slot] = None
        self._free.append(slot)
        self._complete(completion, result)

    async def close(self) -> None:
        assert len(self._free) + self._lost == SLOTS, "closed with operations in flight"
        self._flush_scheduled = False
        self.loop.remove_reader(self._event_fd)
        self._lib.vb_aio_close(self._ring)
        os.close(self._event_fd)

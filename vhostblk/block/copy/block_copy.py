# SPDX-License-Identifier: Apache-2.0
"""`BlockCopy`: copies a disk to another one by clusters, each cluster once.

A cluster is *dirty* until its copy starts; if the copy fails it is dirty again. A caller of `copy`
waits until no cluster of its range is dirty or being copied, whichever caller copies it. It gets an
error only if a piece that it copied itself failed. At most `MAX_BYTES` are in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.graph.node import BlockStatus
from vhostblk.block.io.completion import Completion
from vhostblk.block.io.flags import WriteFlags

if TYPE_CHECKING:
    from vhostblk.block.graph.edge import Edge

#: The length of a piece, and the limit of memory for all pieces in flight (as in QEMU).
CHUNK_BYTES = 1 << 20
MAX_BYTES = 128 << 20


class _Task:
    """Clusters [first, last) that are being copied."""

    __slots__ = ("first", "last", "waiters")

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.last = last
        self.waiters: list[Completion[None]] = []

    def wake(self) -> None:
        waiting, self.waiters = self.waiters, []
        for completion in waiting:
            completion.set_result(None)


class BlockCopy:
    """Copies clusters of `cluster_size` bytes of a disk of `size` bytes."""

    def __init__(self, source: Edge, target: Edge, cluster_size: int, size: int) -> None:
        self._source = source
        self._target = target
        self.cluster_size = cluster_size
        self.size = size
        #: Of shape (clusters,), bool.
        self.dirty = np.ones(-(-size // cluster_size), np.bool_)
        self._tasks: list[_Task] = []
        self._bytes = 0
        self._no_room: list[Completion[None]] = []

    def forget(self, first: int, last: int) -> None:
        """Don't copy clusters [first, last) any more."""
        self.dirty[first:last] = False

    def resize(self, size: int) -> None:
        """Change the length of the disk; new clusters are not to be copied."""
        clusters = -(-size // self.cluster_size)
        kept = self.dirty[:clusters]
        self.dirty = np.zeros(clusters, np.bool_)
        self.dirty[: len(kept)] = kept
        self.size = min(self.size, size)

    async def copy(self, first: int, last: int, cancelled: list[bool] | None = None) -> None:
        """Copy the dirty clusters of [first, last); raises OSError.

        Ends after the current piece once `cancelled` is not empty.
        """
        while not cancelled:
            task = self._start(first, last)
            if task is not None:
                await self._run(task)
                continue
            other = next((t for t in self._tasks if t.first < last and first < t.last), None)
            if other is None:
                return
            done: Completion[None] = Completion()
            other.waiters.append(done)
            await done

    def _start(self, first: int, last: int) -> _Task | None:
        """Start a task for the first dirty run of a range, up to the length of a piece."""
        dirty = self.dirty[first:last]
        begin = int(dirty.argmax()) if len(dirty) else 0
        if not len(dirty) or not dirty[begin]:
            return None
        longest = max(CHUNK_BYTES // self.cluster_size, 1)
        run = dirty[begin : begin + longest]
        length = len(run) if run.all() else int(run.argmin())
        task = _Task(first + begin, first + begin + length)
        self.dirty[task.first : task.last] = False
        self._tasks.append(task)
        return task

    async def _run(self, task: _Task) -> None:
        copied = False
        try:
            zeroes = await self._begins_with_zeroes(task)
            await self._copy_task(task, zeroes=zeroes)
            copied = True
        finally:
            if not copied:
                self.dirty[task.first : task.last] = True
            self._tasks.remove(task)
            task.wake()

    async def _begins_with_zeroes(self, task: _Task) -> bool:
        """Return whether a task's first clusters are zeroes; the task is cut to these clusters."""
        start = task.first * self.cluster_size
        length = min(task.last * self.cluster_size, self.size) - start
        try:
            extent = await self._source.block_status(start, length)
        except OSError:
            extent = None
        if extent is None or extent.length < min(self.cluster_size, length):
            zeroes, last = False, task.first + 1
        elif extent.length >= length:
            zeroes, last = bool(extent.status & BlockStatus.ZERO), task.last
        else:
            zeroes = bool(extent.status & BlockStatus.ZERO)
            last = task.first + extent.length // self.cluster_size
        if last < task.last:
            self.dirty[last : task.last] = True
            task.last = last
            task.wake()
        return zeroes

    async def _copy_task(self, task: _Task, *, zeroes: bool) -> None:
        start = task.first * self.cluster_size
        length = min(task.last * self.cluster_size, self.size) - start
        if length <= 0:  # cut off by a resize
            return
        if zeroes:
            await self._target.pwrite_zeroes(start, length)
            return
        from vhostblk.block.io.iovec import IoVec

        await self._take_room(length)
        try:
            align = max(
                self._source.node.limits.memory_alignment, self._target.node.limits.memory_alignment
            )
            data = IoVec.allocate(length, align)
            await self._source.preadv(start, data)
            await self._target.pwritev(start, data, WriteFlags.NONE)
        finally:
            self._bytes -= length
            waiting, self._no_room = self._no_room, []
            for completion in waiting:
                completion.set_result(None)

    async def _take_room(self, length: int) -> None:
        while self._bytes and self._bytes + length > MAX_BYTES:
            room: Completion[None] = Completion()
            self._no_room.append(room)
            await room
        self._bytes += length

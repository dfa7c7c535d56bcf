# SPDX-License-Identifier: Apache-2.0
"""The file under the images: its requests end in any order, can be recorded, and can fail.

`StoreNode` replaces the driver `file` while a program runs (`Yard.installed`). So it is used for
all files, also those that the code under test opens by name. The bytes are in a real file. An
extent map may publish its descriptor, so that the express lane writes to it directly.

A request waits for some turns of the event loop before it takes effect, and again before it ends; a
write may take effect in two halves. The waiting times are drawn from a seed, so they are the same
in each run.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import os
import random
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from unittest import mock

import numpy as np

from tests.model import sparse
from tests.model.content import GARBAGE_BYTE, SECTOR
from tests.model.disk import NEVER, Clock
from vhostblk.block.drivers.file import FileNode
from vhostblk.block.io.completion import Completion
from vhostblk.block.io.flags import WriteFlags
from vhostblk.engine.extents import Treatment
from vhostblk.errors import os_error
from vhostblk.schema.driver_manifest import DRIVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.node import Failures
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.engine.extents import ExtentMap
    from vhostblk.schema.common import PreallocMode

#: The unit in which the file system allocates space.
BLOCK = 4096

#: The maximum length of a recorded file; memory is allocated as it is used.
_LONGEST = 256 << 20

#: Seconds that the engine needs for a request on an idle machine; more does no harm.
_ENGINE = 0.001

#: The number of turns that a request may wait, by the name of the pace.
PACES: dict[str, tuple[int, ...]] = {
    "none": (0,),
    "short": (0, 0, 1, 2),
    "mixed": (0, 1, 1, 2, 3, 8, 30),
    "long": (0, 1, 5, 20, 100, 300),
    # A few requests are overtaken by all others.
    "straggling": (0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 5, 3000),
}


@dataclass
class Written:
    """A change of a file: data at an offset, or a new length (no data)."""

    time: int
    offset: int
    data: bytes | None
    #: The end of its request; a flush that starts later covers it.
    done: int = NEVER
    #: Whether it was on stable storage at once.
    durable: bool = False


@dataclass
class Flush:
    """A flush: changes that were complete when it started are on stable storage when it ends."""

    start: int
    end: int


class StoreFile:
    """One file: its content, where it has storage, and the times of its changes."""

    def __init__(self, yard: Yard, path: Path) -> None:
        self.yard = yard
        self.path = path
        #: The content at the start of the recording, and all later changes.
        self.before = sparse.Content()
        self.log: list[Written] = []
        self.flushes: list[Flush] = []
        #: The content as written by nodes; where the file differs, the engine wrote.
        self._shadow: NDArray[np.uint8] | None = None
        self._length = 0
        #: Blocks that have storage; None: not determined yet.
        self._backed: NDArray[np.bool_] | None = None
        if yard.recording:
            self.before = sparse.Content(path)
            self._shadow = np.zeros(_LONGEST, np.uint8)
            self.before.copy_to(self._shadow)
            self._length = self.before.size

    def record(self, time: int, offset: int, data: bytes | None) -> Written:
        """Note a change; the caller sets `done` when it ends."""
        written = Written(time, offset, data)
        shadow = self._shadow
        if shadow is None:
            return written
        self.log.append(written)
        if data is None:
            shadow[offset : self._length] = 0
            self._length = offset
        else:
            shadow[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
            self._length = max(self._length, offset + len(data))
        return written

    def note_bypassed(self, *, durable: bool) -> None:
        """Note the engine's writes: all differences to the content that nodes have written."""
        shadow = self._shadow
        if shadow is None:
            return
        with self.path.open("rb") as file:
            for start, stop in sparse.runs(file.fileno()):
                stop -= (stop - start) % SECTOR
                now = np.frombuffer(os.pread(file.fileno(), stop - start, start), np.uint8)
                rows = (now != shadow[start:stop]).reshape(-1, SECTOR).any(axis=1)
                places = np.flatnonzero(rows)
                for run in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1):
                    if len(run):
                        low, high = int(run[0]) * SECTOR, (int(run[-1]) + 1) * SECTOR
                        data = now[low:high].tobytes()
                        time = self.yard.clock.tick()
                        self.log.append(Written(time, start + low, data, time, durable))
                        shadow[start + low : start + high] = now[low:high]

    # Space.

    def _look(self, size: int) -> NDArray[np.bool_]:
        """Return which blocks have storage, for a file of at least `size` bytes."""
        blocks = -(-size // BLOCK)
        if self._backed is None:
            self._backed = np.zeros(blocks, np.bool_)
            with self.path.open("rb") as file:
                for start, stop in sparse.runs(file.fileno()):
                    self._extend(-(-stop // BLOCK))
                    self._backed[start // BLOCK : -(-stop // BLOCK)] = True
        self._extend(blocks)
        return self._backed

    def _extend(self, blocks: int) -> None:
        backed = self._backed
        if backed is not None and blocks > len(backed):
            more = np.zeros(blocks - len(backed), np.bool_)
            self._backed = np.concatenate([backed, more])

    def take(self, offset: int, length: int) -> int:
        """Allocate storage for a range; return how many of its bytes have storage now."""
        if self.yard.free is None:
            self._backed = None
            return length
        backed = self._look(offset + length)
        for block in range(offset // BLOCK, -(-(offset + length) // BLOCK)):
            if backed[block]:
                continue
            if self.yard.free <= 0:
                return max(block * BLOCK - offset, 0)
            self.yard.free -= 1
            backed[block] = True
        return length

    def give(self, offset: int, length: int) -> None:
        """Free the storage of whole blocks."""
        if self.yard.free is None:
            self._backed = None
            return
        backed = self._look(offset + length)
        low, high = -(-offset // BLOCK), (offset + length) // BLOCK
        if low < high:
            self.yard.free += int(backed[low:high].sum())
            backed[low:high] = False


class Yard:
    """All files of one program, with the free space, pace and clock that they share."""

    def __init__(self, clock: Clock, *, pace: str = "none", seed: int = 0) -> None:
        self.clock = clock
        self.pace = pace
        self.recording = False
        #: Whether extent maps are published, for the express lane.
        self.shows_maps = True
        #: Free blocks of the file system; None: any number.
        self.free: int | None = None
        #: How many more requests of each kind ("write", "flush", "read") fail, and the errno.
        self.failing: dict[str, int] = {}
        self.failed_with = errno.EIO
        #: How many requests have failed by `failing`, or because there was no space.
        self.refusals = 0
        #: Whether the power is off: nothing reaches the files any more.
        self.dead = False
        #: Called before a change is recorded, so that earlier acknowledged writes are known.
        self.before_change: Callable[[], object] = _nothing
        self.files: dict[str, StoreFile] = {}
        self._random = random.Random(seed)
        #: Waiting requests, as a heap by turn and order.
        self._waiting: list[tuple[int, int, Completion[None]]] = []
        self._turn = self._count = 0
        self._ticking = False
        #: The engine gets some time before idle turns are skipped.
        self.engine_first = False
        self._paused = False

    def file(self, path: str) -> StoreFile:
        """Return a file by its name."""
        known = self.files.get(path)
        if known is None:
            known = self.files[path] = StoreFile(self, Path(path))
        return known

    def forget(self) -> None:
        """Drop all records, and start again with the present content of the files."""
        self.files.clear()

    def start_recording(self) -> None:
        """Note all changes of files that are opened from now on."""
        self.recording = True

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace the driver `file` by `StoreNode` inside the block."""
        global _yard
        former, _yard = _yard, self
        try:
            ours = DRIVERS["file"]._replace(node=f"{__name__}:StoreNode")
            with mock.patch.dict(DRIVERS, {"file": ours}):
                yield
        finally:
            _yard = former

    async def wait(self) -> None:
        """Wait for some turns."""
        turns = self._random.choice(PACES[self.pace])
        if not turns:
            return
        due: Completion[None] = Completion()
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._count += 1
        heapq.heappush(self._waiting, (self._turn + turns, self._count, due))
        await due

    def _next_turn(self) -> None:
        """Continue the requests whose turn it is; idle turns are skipped."""
        loop: Any = asyncio.get_running_loop()
        self._turn += 1
        if not loop._ready:
            if self.engine_first and not self._paused:
                self._paused = True
                loop.call_later(_ENGINE, self._next_turn)
                return
            self._turn = max(self._turn, self._waiting[0][0])
        self._paused = False
        while self._waiting and self._waiting[0][0] <= self._turn:
            heapq.heappop(self._waiting)[2].set_result(None)
        self._ticking = bool(self._waiting)
        if self._ticking:
            loop.call_soon(self._next_turn)

    def chance(self, share: float) -> bool:
        """Return True with the probability `share`."""
        return self._random.random() < share

    def refuse(self, kind: str) -> None:
        """Raise OSError if a request of this kind has to fail."""
        if self.dead:
            raise os_error(errno.EIO)
        if self.failing.get(kind):
            self.failing[kind] -= 1
            self.refusals += 1
            raise os_error(self.failed_with)

    def full(self) -> OSError:
        """Return the error of a request that finds no space."""
        self.refusals += 1
        return os_error(errno.ENOSPC)


_yard: Yard | None = None


def _nothing() -> None:
    pass


class StoreNode(FileNode):
    """A file of the yard."""

    _store: StoreFile
    _yard: Yard

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        node = await super().open(node_name, options, graph)
        assert _yard is not None
        node._yard = _yard
        node._store = _yard.file(options.filename)
        return node

    def extent_map(self) -> ExtentMap:
        shown = super().extent_map()
        if not self._yard.shows_maps:
            return None  # type: ignore[return-value]  # as nodes in general may
        from msgspec.structs import replace

        return replace(shown, zero_range=False, flush=Treatment.ASK, discard=Treatment.ASK)

    # Reading.

    async def preadv(self, offset: int, iov: IoVec) -> None:
        await self._yard.wait()
        self._yard.refuse("read")
        data = os.pread(self.fd, iov.nbytes, offset)
        iov.copy_from(data.ljust(iov.nbytes, b"\0"))
        await self._yard.wait()

    async def pread_segments(self, offsets: list[int], iov: IoVec) -> Failures:
        return await super(FileNode, self).pread_segments(offsets, iov)

    # Writing.

    def _change(self, offset: int, data: bytes | None, *, hole: bool = False) -> Written:
        yard = self._yard
        if yard.dead:
            raise os_error(errno.EIO)
        yard.before_change()
        time = yard.clock.tick()
        if data is None:
            os.ftruncate(self.fd, offset)
        elif hole:
            sparse.punch(self.fd, offset, len(data))
        else:
            os.pwrite(self.fd, data, offset)
        return self._store.record(time, offset, data)

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        data = iov.to_bytes()
        await self._write(offset, data)
        if offset + iov.nbytes > self._size:
            self._size = -(-(offset + iov.nbytes) // SECTOR) * SECTOR

    async def _write(self, offset: int, data: bytes) -> None:
        yard = self._yard
        await yard.wait()
        yard.refuse("write")
        has_space = self._store.take(offset, len(data))
        half = min(has_space, len(data) // (2 * SECTOR) * SECTOR)
        parts: list[Written] = []
        if half and yard.chance(0.2):
            parts.append(self._change(offset, data[:half]))
            await yard.wait()
            offset, data, has_space = offset + half, data[half:], has_space - half
        if has_space:
            parts.append(self._change(offset, data[:has_space]))
        if has_space < len(data):
            raise yard.full()
        await self._finish(*parts)

    async def _finish(self, *parts: Written) -> None:
        """Let a request end some time after it took effect."""
        await self._yard.wait()
        for part in parts:
            part.done = self._yard.clock.now

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        yard = self._yard
        await yard.wait()
        yard.refuse("write")
        if offset + length > os.fstat(self.fd).st_size:  # writes in flight may have made it longer
            self._change(offset + length, None)
            self._size = self._read_size()
        if flags & WriteFlags.MAY_UNMAP:
            written = self._forget(offset, bytes(length))
        else:
            if self._store.take(offset, length) < length:
                raise yard.full()
            written = self._change(offset, bytes(length))
        await self._finish(written)

    async def reserve(self, offset: int, length: int) -> None:
        await self._yard.wait()
        self._yard.refuse("write")
        if self._store.take(offset, length) < length:
            raise self._yard.full()
        await self._yard.wait()

    def _forget(self, offset: int, data: bytes) -> Written:
        self._store.give(offset, len(data))
        return self._change(offset, data, hole=not data[0])

    async def pdiscard(self, offset: int, length: int) -> None:
        yard = self._yard
        await yard.wait()
        # The content of a discarded range is undefined, so it may be garbage.
        if yard.chance(0.7):
            byte = 0 if yard.chance(0.3) else GARBAGE_BYTE
            await self._finish(self._forget(offset, bytes([byte]) * length))

    async def truncate(self, size: int) -> None:
        await self._yard.wait()
        if size < self._size:
            self._store.give(size, self._size - size)
        written = self._change(size, None)
        self._size = self._read_size()
        await self._finish(written)

    async def grow(self, size: int, mode: PreallocMode) -> None:
        old = self._size
        await self.truncate(size)
        if size > old and self._store.take(old, size - old) < size - old:
            await self.truncate(old)
            raise self._yard.full()

    async def flush(self) -> None:
        yard = self._yard
        start = yard.clock.tick()
        await yard.wait()
        yard.refuse("flush")
        if yard.recording:
            yard.before_change()
            self._store.flushes.append(Flush(start, yard.clock.tick()))

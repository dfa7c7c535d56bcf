# SPDX-License-Identifier: Apache-2.0
"""A file in memory that records what is written to it, and the states that a crash may leave."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from itertools import chain, combinations
from typing import TYPE_CHECKING, Any, Self

from tests.block.support import RW, options
from vhostblk.block.drivers.qcow2.node import Qcow2Node
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.inherit import resolve
from vhostblk.block.graph.node import BlockNode, BlockStatus, Extent
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.completion import Completion
from vhostblk.block.io.flags import WriteFlags
from vhostblk.schema.drivers.file import BlockdevOptionsFile

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from vhostblk.block.io.iovec import IoVec

SECTOR = 512

#: A change: offset and data; a truncation has no data, a flush nothing.
Change = tuple[int, bytes | None] | None


class RecordingNode(BlockNode):
    """A file that records all writes in `log`, in order; each request suspends.

    As with real files, a request that is cancelled takes effect nevertheless.
    """

    driver = "file"

    def __init__(self, data: bytes, name: str = "record") -> None:
        options = BlockdevOptionsFile(node_name=name, filename=name)
        super().__init__(name, resolve(options))
        self.original = data
        self.data = bytearray(data)
        self.log: list[Change] = []
        #: Returns the errno with which a write (offset, data) fails, half done; 0: it succeeds.
        self.fails: Callable[[int, bytes], int] = never
        #: Returns the errno of the n-th request that changes or flushes the file; 0: it succeeds.
        self.fails_at: Callable[[int], int] = _nowhere
        self.requests = 0
        #: Returns whether a write is held up; then the writes that are.
        self.holds: Callable[[int, bytes], bool] = _none
        self.held: list[Completion[None]] = []

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        raise NotImplementedError

    @property
    def size(self) -> int:
        return -(-len(self.data) // SECTOR) * SECTOR

    @property
    def grows_with_zeroes(self) -> bool:
        return True

    @property
    def grows_by_writing(self) -> bool:
        return True

    async def preadv(self, offset: int, iov: IoVec) -> None:
        await self._turn(lambda: iov.copy_from(self._read(offset, iov.nbytes)))

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        data = iov.to_bytes()
        if self.holds(offset, data):
            let_go: Completion[None] = Completion()
            self.held.append(let_go)
            await let_go
        await self._turn(lambda: self._write(offset, data))

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        await self._turn(lambda: self._write(offset, bytes(length)))

    async def pdiscard(self, offset: int, length: int) -> None:
        # What nobody may rely on any more: so that whoever does is found out.
        await self._turn(lambda: self._change((offset, b"\xdd" * length)))

    async def truncate(self, size: int) -> None:
        await self._turn(lambda: self._change((size, None)))

    async def flush(self) -> None:
        # Only what is complete when the flush begins is sure to be there.
        position = len(self.log)
        await self._turn(lambda: self._flushed(position))

    def _flushed(self, position: int) -> None:
        self._count()
        self.log.insert(position, None)

    async def block_status(self, offset: int, length: int) -> Extent:
        status = BlockStatus.DATA | BlockStatus.OFFSET_VALID | BlockStatus.ALLOCATED
        return Extent(length, status, offset, self)

    def _turn(self, action: Callable[[], object]) -> Completion[None]:
        """Do something in the loop's next turn."""
        done: Completion[None] = Completion()

        def act() -> None:
            try:
                action()
            except OSError as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        asyncio.get_running_loop().call_soon(act)
        return done

    def _read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length]).ljust(length, b"\0")

    def _write(self, offset: int, data: bytes) -> None:
        middle = (offset + len(data) // 2) // SECTOR * SECTOR
        half = (offset, data[: max(middle - offset, 0)])
        code = self.fails(offset, data)
        if code:
            self._log(half)
            raise OSError(code, os.strerror(code))
        self._change((offset, data), half)

    def _change(
        self, change: tuple[int, bytes | None], half: tuple[int, bytes | None] | None = None
    ) -> None:
        try:
            self._count()
        except OSError:
            if half is not None:
                self._log(half)
            raise
        self._log(change)

    def _count(self) -> None:
        """Count a request; raise OSError if it has to fail."""
        code = self.fails_at(self.requests)
        self.requests += 1
        if code:
            raise OSError(code, os.strerror(code))

    def _log(self, change: tuple[int, bytes | None]) -> None:
        self.log.append(change)
        apply_change(self.data, change)


def never(_offset: int, _data: bytes) -> int:
    """Have no write fail."""
    return 0


def _nowhere(_number: int) -> int:
    return 0


def _none(_offset: int, _data: bytes) -> bool:
    return False


@asynccontextmanager
async def opened_on(
    file: RecordingNode,
    backing: RecordingNode | None = None,
    others: Sequence[RecordingNode] = (),
    **members: Any,
) -> AsyncIterator[tuple[Qcow2Node, BlockBackend]]:
    """Open the image in a recorded file, in a graph of its own, with `backing` or none.

    `others`: nodes that `members` name; `perm`: the user's permissions.
    """
    perm = Perm.CONSISTENT_READ if members.get("read_only") else RW | Perm.RESIZE
    backend = BlockBackend("test", members.pop("perm", perm))
    graph = Graph()
    for each in (file, *([] if backing is None else [backing]), *others):
        graph._nodes[each.node_name] = each  # directly, as it has no driver's name
    members["backing"] = None if backing is None else backing.node_name
    node = await graph.add(options(driver="qcow2", node_name="disk", file="record", **members))
    assert isinstance(node, Qcow2Node)
    backend.attach(graph, node)
    yield node, backend
    await backend.detach()
    await graph.close()


def apply_change(data: bytearray, change: tuple[int, bytes | None]) -> None:
    """Do to a file what was recorded."""
    offset, written = change
    if written is None:
        del data[offset:]
        data.extend(bytes(offset - len(data)))
        return
    if offset + len(written) > len(data):
        data.extend(bytes(offset + len(written) - len(data)))
    data[offset : offset + len(written)] = written


def crash(before: bytes, log: list[Change], rng: random.Random) -> bytes:
    """Return a file as a crash at the end of `log` may leave it.

    What was flushed is there. Of the rest each write may be there or not, or some of its sectors;
    likewise each change of the file's length.
    """
    data = bytearray(before)
    last = max((index for index, change in enumerate(log) if change is None), default=-1)
    for index, change in enumerate(log):
        if change is None:
            continue
        if index < last:
            apply_change(data, change)
        elif rng.random() < 0.5:
            _apply_sectors(data, change, rng)
    return bytes(data)


def _apply_sectors(data: bytearray, change: tuple[int, bytes | None], rng: random.Random) -> None:
    """Apply all of a write, or some of its sectors."""
    offset, written = change
    if written is None or rng.random() < 0.7:
        apply_change(data, change)
        return
    for start in range(offset - offset % SECTOR, offset + len(written), SECTOR):
        low, high = max(start, offset), min(start + SECTOR, offset + len(written))
        if rng.random() < 0.5:
            apply_change(data, (low, written[low - offset : high - offset]))


def crashes(before: bytes, log: list[Change]) -> Iterator[bytes]:
    """Yield all states that a crash at any point of `log` may leave, each once.

    Writes that were not flushed by then may survive or not. If they are few, all combinations are
    tried; else all, none, all but one, and only one. Of a write, either half may survive.
    """
    seen: set[int] = set()
    safe, tail = bytearray(before), list[tuple[int, bytes | None]]()
    for change in [*log, None]:
        if change is not None:
            tail.append(change)
            continue
        for chosen in _parts(tail):
            data = bytearray(safe)
            for each in chosen:
                apply_change(data, each)
            state = bytes(data)
            if hash(state) not in seen:
                seen.add(hash(state))
                yield state
        for each in tail:
            apply_change(safe, each)
        tail.clear()


def flushed(before: bytes, log: list[Change]) -> bytes:
    """Return the content that is durable at the end of `log`."""
    data = bytearray(before)
    last = max((index for index, change in enumerate(log) if change is None), default=0)
    for change in log[:last]:
        if change is not None:
            apply_change(data, change)
    return bytes(data)


def _parts(
    tail: list[tuple[int, bytes | None]],
) -> Iterator[tuple[tuple[int, bytes | None], ...]]:
    """Yield the sets of unflushed writes that may survive."""
    count = len(tail)
    if count <= 4:
        yield from chain.from_iterable(combinations(tail, size) for size in range(count + 1))
    else:
        yield from ((), tuple(tail))
        for index, change in enumerate(tail):
            yield (change,)
            yield (*tail[:index], *tail[index + 1 :])
    for index, (offset, data) in enumerate(tail):
        if data is not None and len(data) > SECTOR:
            middle = len(data) // 2 // SECTOR * SECTOR
            yield (*tail[:index], (offset, data[:middle]))
            yield (*tail[:index], (offset + middle, data[middle:]))

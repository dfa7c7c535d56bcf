# SPDX-License-Identifier: Apache-2.0
"""Reads and writes of metadata, and waiting for several transfers at once."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from vhostblk.block.io.completion import Completion, gather
from vhostblk.block.io.iovec import IoVec, address_of
from vhostblk.engine.layouts import IOVEC

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from numpy.typing import DTypeLike, NDArray

    from vhostblk.block.graph.edge import Edge

#: Number of words of a table to examine together.
PIECE = 1 << 17
#: Number of coroutines to run concurrently.
_TOGETHER = 64


def iov_of(array: NDArray[Any]) -> IoVec:
    """Return an IoVec of a contiguous array, which it keeps alive."""
    segments = np.zeros(1, IOVEC)
    segments["base"] = address_of(array)
    segments["len"] = array.nbytes
    return IoVec(segments, 0, 1, array.nbytes, address_of(segments), (segments, array))


async def read_array(edge: Edge, offset: int, count: int, dtype: DTypeLike) -> NDArray[Any]:
    """Read `count` items; past the end of the file they are zeroes."""
    array = np.empty(count, dtype)
    if array.nbytes:
        await edge.preadv(offset, iov_of(array))
    return array


def pieces(table: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Divide a table, without all-zero parts, whose memory stays untouched."""
    for start in range(0, len(table), PIECE):
        part = table[start : start + PIECE]
        if part.any():
            yield part


async def read_table(edge: Edge, offset: int, count: int) -> NDArray[np.uint64]:
    """Read `count` words. Zeroes, and words past the file's end, take no memory."""
    table = np.zeros(count, np.uint64)
    there = min(count, max(edge.node.size - offset, 0) >> 3)
    for start in range(0, there, PIECE):
        words = min(PIECE, there - start)
        fill(table, start, await read_array(edge, offset + 8 * start, words, ">u8"))
    return table


def fill(table: NDArray[np.uint64], start: int, words: NDArray[Any]) -> None:
    """Copy words into a table of zeroes."""
    for place in range(0, len(words), PIECE):
        part = words[place : place + PIECE]
        if part.any():
            table[start + place : start + place + len(part)] = part


async def read_bytes(edge: Edge, offset: int, length: int) -> bytes:
    """Read `length` bytes."""
    return (await read_array(edge, offset, length, np.uint8)).tobytes()


async def write_array(edge: Edge, offset: int, array: NDArray[Any]) -> None:
    """Write an array with its present content."""
    if array.nbytes:
        await edge.pwritev(offset, iov_of(np.ascontiguousarray(array)))


async def write_bytes(edge: Edge, offset: int, data: bytes) -> None:
    """Write bytes."""
    await write_array(edge, offset, np.frombuffer(bytearray(data), np.uint8))


async def run_all(coroutines: Sequence[Coroutine[Any, Any, Any]]) -> None:
    """Run coroutines concurrently; once all have ended, raise the first error.

    Only some run at a time, so that the event loop can run other tasks.
    """
    if len(coroutines) == 1:
        await coroutines[0]
        return
    first: BaseException | None = None
    for start in range(0, len(coroutines), _TOGETHER):
        try:
            errors = await gather(coroutines[start : start + _TOGETHER])
        except BaseException:  # cancelled
            for rest in coroutines[start + _TOGETHER :]:
                rest.close()
            raise
        first = first or next((error for error in errors if error is not None), None)
    if first is not None:
        raise first


class Mutex:
    """Admits one coroutine at a time, in the order of arrival."""

    __slots__ = ("_held", "_waiting")

    def __init__(self) -> None:
        self._held = False
        self._waiting: deque[Completion[None]] = deque()

    async def __aenter__(self) -> None:
        if not self._held:
            self._held = True
            return
        turn: Completion[None] = Completion()
        self._waiting.append(turn)
        try:
            await turn
        except BaseException:  # cancelled after it got the lock
            self._pass_on()
            raise

    async def __aexit__(self, *_exception: object) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        if self._waiting:
            # Not on this stack, as many may wait.
            asyncio.get_running_loop().call_soon(self._waiting.popleft().set_result, None)
        else:
            self._held = False

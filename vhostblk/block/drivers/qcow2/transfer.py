# SPDX-License-Identifier: Apache-2.0
"""Reading and writing metadata, and waiting for several transfers at once."""

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

#: Words of a table that are looked at together.
PIECE = 1 << 17
#: Coroutines that run side by side.
_TOGETHER = 64


def iov_of(array: NDArray[Any]) -> IoVec:
    """Describe a contiguous array's memory, and keep it alive."""
    segments = np.zeros(1, IOVEC)
    segments["base"] = address_of(array)
    segments["len"] = array.nbytes
    return IoVec(segments, 0, 1, array.nbytes, address_of(segments), (segments, array))


async def read_array(edge: Edge, offset: int, count: int, dtype: DTypeLike) -> NDArray[Any]:
    """Read `count` items; what lies past the end of the file reads as zeroes."""
    array = np.empty(count, dtype)
    if array.nbytes:
        await edge.preadv(offset, iov_of(array))
    return array


def pieces(table: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Divide a table, without the parts that have only zeroes; memory is then not touched."""
    for start in range(0, len(table), PIECE):
        part = table[start : start + PIECE]
        if part.any():
            yield part


async def read_table(edge: Edge, offset: int, count: int) -> NDArray[np.uint64]:
    """Read `count` words. Of what has zeroes, or is past the file's end, nothing is in memory."""
    table = np.zeros(count, np.uint64)
    there = min(count, max(edge.node.size - offset, 0) >> 3)
    for start in range(0, there, PIECE):
        words = min(PIECE, there - start)
        fill(table, start, await read_array(edge, offset + 8 * start, words, ">u8"))
    return table


def fill(table: NDArray[np.uint64], start: int, words: NDArray[Any]) -> None:
    """Put words in a table that has zeroes."""
    for place in range(0, len(words), PIECE):
        part = words[place : place + PIECE]
        if part.any():
            table[start + place : start + place + len(part)] = part


async def read_bytes(edge: Edge, offset: int, length: int) -> bytes:
    """Read `length` bytes."""
    return (await read_array(edge, offset, length, np.uint8)).tobytes()


async def write_array(edge: Edge, offset: int, array: NDArray[Any]) -> None:
    """Write an array, as it is now."""
    if array.nbytes:
        await edge.pwritev(offset, iov_of(np.ascontiguousarray(array)))


async def write_bytes(edge: Edge, offset: int, data: bytes) -> None:
    """Write bytes."""
    await write_array(edge, offset, np.frombuffer(bytearray(data), np.uint8))


async def run_all(coroutines: Sequence[Coroutine[Any, Any, Any]]) -> None:
    """Run coroutines side by side; once all have ended, raise the first error.

    Of many, some run at a time, so that others get the event loop.
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
    """Lets one coroutine in at a time, in the order of arrival."""

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
        except BaseException:  # cancelled, when the turn had come
            self._pass_on()
            raise

    async def __aexit__(self, *_exception: object) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        if self._waiting:
            # Not on this stack: many may wait.
            asyncio.get_running_loop().call_soon(self._waiting.popleft().set_result, None)
        else:
            self._held = False

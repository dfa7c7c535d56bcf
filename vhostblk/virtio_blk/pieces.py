# SPDX-License-Identifier: Apache-2.0
"""Long transfers on the Python lane, in pieces: others have their turn in between.

A guest may ask for as much as its disk has, into one buffer that it names a thousand times.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vhostblk.block.io.completion import Completion

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from vhostblk.block.io.iovec import IoVec

#: The longest transfer that is done in one go, in bytes.
PIECE = 4 << 20

#: How much of a burst is started in one turn of the event loop, in bytes.
TURN_BYTES = 16 << 20


async def in_pieces(
    transfer: Callable[[int, IoVec], Coroutine[object, object, None]], offset: int, iov: IoVec
) -> None:
    """Do a long transfer, one piece in a turn of the event loop."""
    loop = asyncio.get_running_loop()
    for start in range(0, iov.nbytes, PIECE):
        if start:
            turn: Completion[None] = Completion()
            loop.call_soon(turn.set_result, None)
            await turn
        await transfer(offset + start, iov.slice(start, min(start + PIECE, iov.nbytes)))

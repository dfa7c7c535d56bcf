# SPDX-License-Identifier: Apache-2.0
"""Verified I/O of a front-end on a daemon in this process, while its graph changes."""

from __future__ import annotations

import asyncio
import random
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from tests.frontend.blk import BlkDriver
from tests.frontend.connection import Connection
from tests.frontend.memory import Memory
from vhostblk.virtio_blk.layout import RequestType

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from tests.frontend.loop_thread import LoopThread
    from vhostblk.daemon import Daemon

#: Length of the disk, and of a request.
SIZE = 1 << 20
BLOCK = 4096


def definition(directory: Path) -> dict[str, Any]:
    """Return the export "e" of the node "disk", on the socket `e.sock`."""
    addr = {"type": "unix", "path": str(directory / "e.sock")}
    members = {"type": "vhost-user-blk", "id": "e", "node-name": "disk", "addr": addr}
    return {**members, "writable": True}


async def export_disk(daemon: Daemon, directory: Path) -> None:
    """Export the node "disk"; see `definition`."""
    await daemon.add_export(definition(directory))


@contextmanager
def serving(daemon: Daemon, loop: LoopThread, socket: Path) -> Iterator[BlkDriver]:
    """Run a daemon on `loop` and a front-end on one of its sockets."""
    loop.run(daemon.__aenter__())
    try:
        with closing(Memory()) as memory, BlkDriver(Connection.connect(socket), memory) as driver:
            yield driver
    finally:
        loop.run(daemon.close())


def verify_under_changes(
    driver: BlkDriver,
    loop: LoopThread,
    changes: Callable[[asyncio.Event], Coroutine[object, object, int]],
) -> int:
    """Write and verify beside `changes`, which goes on until told; return what it returns."""
    done = asyncio.Event()
    changing = asyncio.run_coroutine_threadsafe(changes(done), loop.loop)
    try:
        write_and_verify(driver)
    finally:
        loop.loop.call_soon_threadsafe(done.set)
        changed = changing.result(30)
    return changed


def write_and_verify(driver: BlkDriver) -> None:
    """Write each block many times, sixteen at a time; check each after each round."""
    chosen = random.Random(4)
    blocks = SIZE // BLOCK
    for _ in range(8):
        data = [chosen.randbytes(8) * (BLOCK // 8) for _ in range(blocks)]
        data[3] = bytes(BLOCK)
        order = chosen.sample(range(blocks), blocks)

        def write(
            number: int, order: list[int] = order, data: list[bytes] = data
        ) -> tuple[int, int, bytes]:
            block = order[number]
            return RequestType.OUT, block * BLOCK, data[block]

        driver.run_at_depth(16, blocks, write)
        driver.flush()
        for block in range(0, blocks, 16):
            assert driver.read(block * BLOCK, 16 * BLOCK) == b"".join(data[block : block + 16])

# SPDX-License-Identifier: Apache-2.0
"""A command whose caller is cancelled goes on, with the descriptor of its own disk."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.cli.process import PATIENCE
from vhostblk.block.reservable import Change, Reservable, change_reservations
from vhostblk.reservations.kernel import KernelManager
from vhostblk.reservations.layout import CHECK_CONDITION
from vhostblk.schema.reservations import PrOutAction

if TYPE_CHECKING:
    from pathlib import Path


class Disk(Reservable):
    """A node with a descriptor."""

    node_name = driver = "disk"
    read_only = False

    def __init__(self, path: Path, manager: KernelManager) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.pr_manager = manager


def test_a_cancelled_command_reaches_no_other_disk(tmp_path: Path) -> None:
    began, may_end = threading.Event(), threading.Event()
    reached: list[int] = []

    def ioctl(fd: int, _request: int, _memory: bytearray) -> int:
        reached.append(os.fstat(fd).st_ino)
        began.set()
        may_end.wait(PATIENCE)
        return CHECK_CONDITION  # it is sent again

    async def main() -> None:
        manager = KernelManager(ioctl)
        disk = Disk(tmp_path / "one", manager)
        wanted = os.fstat(disk.fd).st_ino
        change = Change(PrOutAction.CLEAR, 1)
        task = asyncio.ensure_future(change_reservations(cast("Any", disk), change))
        await asyncio.to_thread(began.wait, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        os.close(disk.fd)
        others = [os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT) for _ in range(8)]
        assert manager.commands == 1
        may_end.set()
        async with asyncio.timeout(PATIENCE):
            while manager.commands:  # noqa: ASYNC110 (another task ends it)
                await asyncio.sleep(0.001)
        for other in others:
            os.close(other)
        assert set(reached) == {wanted}
        assert len(reached) > 1

    asyncio.run(main())

# SPDX-License-Identifier: Apache-2.0
"""Nodes change while a front-end does verified I/O, in both lanes: nothing fails or is lost."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.frontend.loop_thread import loop
from tests.qmp_block.load import BLOCK, SIZE, serving, verify_under_changes
from tests.qmp_block.support import execute
from tests.virtio_blk.lanes import lane
from vhostblk.daemon import Daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.frontend.loop_thread import LoopThread

__all__ = ["lane", "loop"]  # fixtures


def changes(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield commands that leave the disk's data where it is."""
    file = {"driver": "file", "node-name": "file", "filename": str(path)}
    disk = {"driver": "raw", "node-name": "disk"}
    for number in itertools.count():
        for change in (
            {**file, "cache": {"no-flush": True}},
            {**disk, "file": "middle"},
            {**file, "discard": "unmap", "detect-zeroes": "unmap"},
            {**disk, "file": "file"},
            {**file, "cache": {"direct": True}},
            file,
        ):
            yield "blockdev-reopen", {"options": [change]}
        yield "block-set-write-threshold", {"node-name": "file", "write-threshold": SIZE // 2}
        yield "block_resize", {"node-name": "disk", "size": SIZE + BLOCK * (number % 5)}


async def change_until(daemon: Daemon, path: Path, done: asyncio.Event) -> int:
    """Make changes; return how many succeeded."""
    succeeded = 0
    for name, arguments in changes(path):
        if done.is_set():
            break
        answer = await execute(daemon, name, arguments)
        # A file system may have no O_DIRECT.
        assert "return" in answer or "O_DIRECT" in answer["desc"], answer
        succeeded += "return" in answer
        await asyncio.sleep(0.001)
    await execute(daemon, "block_resize", {"node-name": "disk", "size": 2 * SIZE})
    return succeeded


@pytest.mark.usefixtures("lane")
def test_changes_under_load(tmp_path: Path, loop: LoopThread) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    daemon = Daemon(
        blockdevs=[
            {"driver": "file", "node-name": "file", "filename": str(path)},
            {"driver": "raw", "node-name": "middle", "file": "file"},
            {"driver": "raw", "node-name": "disk", "file": "file"},
        ],
        exports=[
            {
                "type": "vhost-user-blk",
                "id": "e",
                "node-name": "disk",
                "addr": {"type": "unix", "path": str(tmp_path / "e.sock")},
                "writable": True,
            }
        ],
    )
    with serving(daemon, loop, tmp_path / "e.sock") as driver:
        assert verify_under_changes(driver, loop, partial(change_until, daemon, path)) >= 4
        assert driver.capacity == 2 * SIZE

# SPDX-License-Identifier: Apache-2.0
"""Drivers for testing come, go and fail while a front-end does I/O, in both lanes."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.test_blklogwrites import replay
from tests.frontend.blk import RequestError
from tests.frontend.loop_thread import loop
from tests.qmp_block.load import SIZE, serving, verify_under_changes, write_and_verify
from tests.qmp_block.support import execute
from tests.virtio_blk.lanes import lane
from vhostblk.daemon import Daemon

if TYPE_CHECKING:
    from pathlib import Path

    from tests.frontend.loop_thread import LoopThread

__all__ = ["lane", "loop"]  # fixtures

pytestmark = pytest.mark.usefixtures("lane")


def daemon_on(directory: Path, *more: dict[str, Any]) -> Daemon:
    for name in ("disk", "copy"):
        (directory / name).write_bytes(bytes(SIZE))
    (directory / "journal").write_bytes(b"")
    files = [
        {
            "driver": "file",
            "node-name": name,
            "filename": str(directory / name),
            "discard": "unmap",
        }
        for name in ("disk", "copy", "journal")
    ]
    export = {
        "type": "vhost-user-blk",
        "id": "e",
        "node-name": "top",
        "addr": {"type": "unix", "path": str(directory / "e.sock")},
        "writable": True,
    }
    return Daemon(blockdevs=[*files, *more], exports=[export])


QUORUM = {"driver": "quorum", "node-name": "q", "children": ["disk"], "vote-threshold": 1}
LOG = {"driver": "blklogwrites", "node-name": "log", "file": "disk", "log": "journal"}
DEBUG = {"driver": "blkdebug", "node-name": "d", "image": "disk"}


def top(below: str) -> dict[str, Any]:
    return {"driver": "raw", "node-name": "top", "file": below}


async def change_until(daemon: Daemon, done: asyncio.Event) -> int:
    """Put filters in and take them out, until told to stop; return how often."""
    for number in itertools.count():
        if done.is_set():
            return number
        for below in ("d", "log", "disk"):
            answer = await execute(daemon, "blockdev-reopen", {"options": [top(below)]})
            assert answer == {"return": {}}
            await asyncio.sleep(0.001)
    raise AssertionError


def test_filters_come_and_go(loop: LoopThread, tmp_path: Path) -> None:
    daemon = daemon_on(tmp_path, DEBUG, LOG, top("disk"))
    with serving(daemon, loop, tmp_path / "e.sock") as driver:
        assert verify_under_changes(driver, loop, partial(change_until, daemon)) >= 1


def test_what_is_logged_is_all_there_is(loop: LoopThread, tmp_path: Path) -> None:
    """A filter that must see every write sees every write, from the moment it is there."""
    daemon = daemon_on(tmp_path, LOG, top("disk"))
    with serving(daemon, loop, tmp_path / "e.sock") as driver:
        driver.write(0, b"\x01" * 4096)
        before = (tmp_path / "disk").read_bytes()
        insert = execute(daemon, "blockdev-reopen", {"options": [top("log")]})
        assert loop.run(insert) == {"return": {}}
        write_and_verify(driver)
        remove = execute(daemon, "blockdev-reopen", {"options": [top("disk")]})
        assert loop.run(remove) == {"return": {}}
    disk = bytearray(before)
    replay((tmp_path / "journal").read_bytes(), disk)
    assert disk == (tmp_path / "disk").read_bytes()


async def change_children_until(daemon: Daemon, done: asyncio.Event) -> int:
    for number in itertools.count():
        if done.is_set():
            return number
        for change in ({"node": "copy"}, {"child": "children.1"}):
            answer = await execute(daemon, "x-blockdev-change", {"parent": "q", **change})
            assert answer == {"return": {}}
            await asyncio.sleep(0.001)
    raise AssertionError


def test_children_of_a_quorum_come_and_go(loop: LoopThread, tmp_path: Path) -> None:
    quorum = {**QUORUM, "read-pattern": "fifo"}  # the copy is out of date
    daemon = daemon_on(tmp_path, quorum, top("q"))
    with serving(daemon, loop, tmp_path / "e.sock") as driver:
        assert verify_under_changes(driver, loop, partial(change_children_until, daemon)) >= 1


def test_rules_concern_the_express_lane_too(loop: LoopThread, tmp_path: Path) -> None:
    rule = {"event": "write_aio", "errno": 28, "once": True}
    daemon = daemon_on(tmp_path, {**DEBUG, "inject-error": [rule]}, top("disk"))
    with serving(daemon, loop, tmp_path / "e.sock") as driver:
        driver.write(0, b"\x01" * 512)
        insert = execute(daemon, "blockdev-reopen", {"options": [top("d")]})
        assert loop.run(insert) == {"return": {}}
        assert driver.read(0, 512) == b"\x01" * 512
        with pytest.raises(RequestError):
            driver.write(0, b"\x02" * 512)
        driver.write(0, b"\x03" * 512)
        assert driver.read(0, 512) == b"\x03" * 512

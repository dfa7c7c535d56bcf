# SPDX-License-Identifier: Apache-2.0
"""Work on a whole image goes table by table: others get the event loop, and the log says how far.

What is measured is the processor's time, which does not depend on what else the machine does.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.tools import check, opened, qemu_img, run
from vhostblk.block.drivers.qcow2 import pace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

GIB = 1 << 30
#: In seconds: the longest time that others wait, and it is generous.
STALL = 0.05

WORK: dict[str, Callable[[Any], Awaitable[object]]] = {
    "check": lambda node: node.check_image(repair=False),
    "create": lambda node: node.create_snapshot("s"),
    "repair": lambda node: node.check_image(repair=True),
    "apply": lambda node: node.apply_snapshot(name="s"),
    "delete": lambda node: node.delete_snapshot(name="s"),
}


def _full(path: Path, size: int) -> Path:
    """Make an image with a cluster for each of the disk's."""
    qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, size)
    return path


async def _watch(longest: list[float]) -> None:
    """Note the longest time between two turns of the event loop."""
    before = time.thread_time()
    while True:
        await asyncio.sleep(0)
        now = time.thread_time()
        longest[0], before = max(longest[0], now - before), now


async def _measure(path: Path) -> dict[str, tuple[float, float]]:
    """Return, for each kind of work, the time that it takes and the longest time of a turn."""
    found = {}
    async with opened(path) as (node, backend):
        await backend.pwrite_zeroes(0, 512)  # so that everything is loaded
        for name, work in WORK.items():
            longest = [0.0]
            watching = asyncio.ensure_future(_watch(longest))
            await asyncio.sleep(0)
            start = time.process_time()
            await work(node)
            found[name] = (time.process_time() - start, longest[0])
            watching.cancel()
    return found


def test_work_on_large_images_is_linear_and_in_turns(tmp_path: Path) -> None:
    small, large = _full(tmp_path / "small", 8 * GIB), _full(tmp_path / "large", 64 * GIB)
    base, found = run(_measure(small)), run(_measure(large))
    check(large)
    for name, (spent, longest) in found.items():
        assert longest < STALL, found
        assert spent < 16 * max(base[name][0], 0.01), (base, found)


@pytest.mark.parametrize("name", ["check", "create"])
def test_the_log_says_how_far_the_work_is(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pace, "_TURN", 0)
    monkeypatch.setattr(pace, "_REPORT", 0)
    path = _full(tmp_path / "disk.qcow2", 4 * GIB)

    async def main() -> None:
        async with opened(path) as (node, _):
            await WORK[name](node)

    run(main())
    what = {"check": "checking", "create": "creating a snapshot"}[name]
    assert f"{path}: {what}: reading L2 tables, 50 % done" in caplog.text

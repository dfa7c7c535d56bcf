# SPDX-License-Identifier: Apache-2.0
"""The Python face of an iothread: who is told of what."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.support import TIMEOUT, Rig, Upcall
from vhostblk.engine import load
from vhostblk.engine.iothread import Iothread, IothreadOptions
from vhostblk.virtio_blk.layout import RequestType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(load() is None, reason="needs the compiled engine")


class Failing:
    """A listener that raises whatever it is told."""

    label = "a listener that fails"

    def __init__(self) -> None:
        self.told: list[str] = []
        #: Of requests that have come up, and are not answered.
        self.tags: list[int] = []

    def engine_news(self) -> None:
        self.told.append("news")
        raise RuntimeError("news")

    def upcalls(self, records: Any, iovs: Any) -> None:
        self.told.append("upcall")
        self.tags += records["tag"].tolist()
        raise RuntimeError("upcalls")


@contextmanager
def queues(count: int) -> Iterator[tuple[Rig, list[Any], list[Failing]]]:
    """Make queues on an iothread of the event loop, and their listeners."""
    iothread = Iothread("t", IothreadOptions(poll_max_ns=0))
    with Rig() as rig:
        own, rig.thread = rig.thread, iothread.handle
        made = [rig.queue() for _ in range(count)]
        listeners = [Failing() for _ in made]
        ports = [queue.port for queue in made]
        for port, listener in zip(ports, listeners, strict=True):
            iothread.add(port, listener)
        yield rig, made, listeners
        for queue, port, listener in zip(made, ports, listeners, strict=True):
            for tag in listener.tags:
                queue.complete(Upcall(tag, 0, 0, 0, []), 1)
            queue.close()
            iothread.remove(port)
        iothread.close()
        rig.thread = own


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while True:
            if condition():
                return
            await asyncio.sleep(0.001)


def test_all_are_told_where_one_fails() -> None:
    async def run() -> None:
        with queues(2) as (rig, made, listeners):
            for queue in made:
                queue.ring.make_available(77)
                queue.ring.kick(force=True)
            # The loop has not looked meanwhile.
            rig.wait_until(lambda: all(queue.broken for queue in made))
            await until(lambda: all("news" in listener.told for listener in listeners))

    asyncio.run(run())


def test_news_are_told_where_serving_a_request_fails() -> None:
    async def run() -> None:
        with queues(2) as (rig, (first, second), listeners):
            first.request(RequestType.FLUSH)
            rig.wait_until(lambda: first.in_flight > 0)
            second.ring.make_available(77)
            second.ring.kick(force=True)
            rig.wait_until(lambda: bool(second.broken))
            await until(lambda: "upcall" in listeners[0].told and "news" in listeners[1].told)

    asyncio.run(run())


def test_the_threads_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """As QEMU's have, so that `top -H` tells them apart; the kernel keeps 15 bytes."""
    monkeypatch.setenv("VHOSTBLK_IO_URING", "off")

    async def main() -> None:
        iothread = Iothread("a-name-too-long", IothreadOptions(poll_max_ns=0, pool_threads=1))
        try:
            deadline = time.monotonic() + TIMEOUT
            while not {"worker", "watchdog"} <= set(_thread_names().values()):
                assert time.monotonic() < deadline
                os.sched_yield()
            names = _thread_names()
            assert names[str(iothread.thread_id)] == "IO a-name-too-l"
        finally:
            iothread.close()

    asyncio.run(main())


def _thread_names() -> dict[str, str]:
    """Return the names of the process's threads by number."""
    tasks = Path("/proc/self/task").iterdir()
    return {task.name: (task / "comm").read_text().strip() for task in tasks}

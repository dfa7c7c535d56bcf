# SPDX-License-Identifier: Apache-2.0
"""An express queue waits for requests when entries of a table have been taken back."""

from __future__ import annotations

import asyncio
from typing import Any

from vhostblk.block.io.completion import resolve_all
from vhostblk.virtio_blk.express import ExpressQueue


class Phases:
    """Replaces the engine's count of requests that use the table (`vb_port_settle`)."""

    def __init__(self) -> None:
        self.in_flight, self.phase = [0, 0], 0

    def vb_port_settle(self, _port: object) -> int:
        former, self.phase = self.phase, 1 - self.phase
        return self.in_flight[former]

    def vb_port_unsettled(self, _port: object) -> int:
        return self.in_flight[1 - self.phase]


class Bench:
    """A queue without an engine."""

    def __init__(self, *in_flight: int) -> None:
        self.phases: Any = Phases()
        self.phases.in_flight = list(in_flight)
        self.queue = ExpressQueue.__new__(ExpressQueue)
        self.queue._queue = self.queue._port = object()
        self.queue._lib, self.queue._settled = self.phases, []

    async def settle(self) -> asyncio.Task[None]:
        """Start a task that waits."""
        waiting = asyncio.create_task(self.queue.settle())
        await asyncio.sleep(0)
        return waiting

    async def end(self, phase: int) -> None:
        """Let the requests of a phase end."""
        self.phases.in_flight[phase] = 0
        if not self.phases.vb_port_unsettled(None):  # as `engine_news` does
            resolve_all(self.queue._settled)
        for _ in range(5):
            await asyncio.sleep(0)


def test_what_is_in_flight_is_waited_for_and_nothing_else() -> None:
    async def main() -> None:
        bench = Bench(1, 0)
        waiting = await bench.settle()
        bench.phases.in_flight[1] = 1  # began afterwards
        assert not waiting.done()
        await bench.end(0)
        assert waiting.done()

    asyncio.run(main())


def test_what_was_not_waited_for_is_waited_for_the_next_time() -> None:
    """The first task that waited was cancelled."""

    async def main() -> None:
        bench = Bench(1, 0)
        (await bench.settle()).cancel()
        bench.phases.in_flight[1] = 1
        waiting = await bench.settle()
        await bench.end(1)
        assert not waiting.done()
        await bench.end(0)
        assert waiting.done()

    asyncio.run(main())

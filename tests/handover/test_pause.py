# SPDX-License-Identifier: Apache-2.0
"""Suspending the exports of a daemon, and flushing: at the same time, and not for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vhostblk.errors import VhostblkError
from vhostblk.handover import giver
from vhostblk.handover.errors import HandoverError


class FakeDaemon:
    """Exports that are suspended once the test lets them, or fail."""

    def __init__(self, *names: str) -> None:
        self.exports = dict.fromkeys(names)
        self.begun: set[str] = set()
        self.cancelled: set[str] = set()
        self.released = {name: asyncio.Event() for name in names}
        self.failing: set[str] = set()
        self.graph = ["node"]

    async def suspend_export(self, name: str) -> str:
        self.begun.add(name)
        try:
            await self.released[name].wait()
        except asyncio.CancelledError:
            self.cancelled.add(name)
            raise
        if name in self.failing:
            raise VhostblkError(f"{name} fails")
        del self.exports[name]
        return f"carried {name}"

    async def until_begun(self) -> None:
        """Wait until all exports are being suspended."""
        async with asyncio.timeout(20):
            while True:
                if self.begun == set(self.released):
                    return
                await asyncio.sleep(0)


def suspend(daemon: FakeDaemon, carried: dict[str, Any]) -> asyncio.Task[None]:
    return asyncio.create_task(giver._suspend_exports(daemon, carried))  # type: ignore[arg-type]


def test_exports_are_suspended_at_the_same_time() -> None:
    async def main() -> None:
        daemon, carried = FakeDaemon("a", "b", "c"), dict[str, Any]()
        suspending = suspend(daemon, carried)
        await daemon.until_begun()
        for name in "cba":
            daemon.released[name].set()
            await asyncio.sleep(0)
        await suspending
        assert list(carried.items()) == [(name, f"carried {name}") for name in "abc"]
        assert daemon.cancelled == set()

    asyncio.run(asyncio.wait_for(main(), 40))


def test_a_daemon_without_exports() -> None:
    async def main() -> None:
        carried: dict[str, Any] = {}
        await suspend(FakeDaemon(), carried)
        assert carried == {}

    asyncio.run(asyncio.wait_for(main(), 40))


def test_the_first_failure_ends_it_and_others_go_on() -> None:
    async def main() -> None:
        daemon, carried = FakeDaemon("a", "b", "c"), dict[str, Any]()
        daemon.failing.add("b")
        suspending = suspend(daemon, carried)
        await daemon.until_begun()
        daemon.released["a"].set()
        await asyncio.sleep(0)
        daemon.released["b"].set()
        with pytest.raises(VhostblkError, match="b fails"):
            await suspending
        assert carried == {"a": "carried a"}
        assert daemon.cancelled == {"c"}
        assert set(daemon.exports) == {"b", "c"}

    asyncio.run(asyncio.wait_for(main(), 40))


def test_an_export_that_is_late_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giver, "PAUSE_LIMIT", 0.05)

    async def main() -> None:
        daemon, carried = FakeDaemon("a", "b"), dict[str, Any]()
        daemon.released["b"].set()
        with pytest.raises(HandoverError, match="export 'a' has not finished its requests"):
            await suspend(daemon, carried)
        assert carried == {"b": "carried b"}
        assert daemon.cancelled == {"a"}

    asyncio.run(asyncio.wait_for(main(), 40))


def test_what_is_given_up_while_exports_are_suspended() -> None:
    """The daemon is told to end: those that were suspended can be started again, others go on."""

    async def main() -> None:
        daemon, carried = FakeDaemon("a", "b"), dict[str, Any]()
        suspending = suspend(daemon, carried)
        await daemon.until_begun()
        daemon.released["a"].set()
        await asyncio.sleep(0)
        suspending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await suspending
        assert carried == {"a": "carried a"}
        assert daemon.cancelled == {"b"}

    asyncio.run(asyncio.wait_for(main(), 40))


def test_flushing_ends_in_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not cancelled; if it fails later, the log has that."""

    async def main() -> None:
        disk = asyncio.Event()

        async def flush(_node: object) -> None:
            await disk.wait()
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(giver, "flush_node", flush)
        daemon: Any = FakeDaemon()
        with pytest.raises(HandoverError, match="takes more than 0 seconds"):
            await giver._flush(daemon, 0.05)
        disk.set()
        async with asyncio.timeout(20):
            while True:
                if "hand-over: flush failed: Input/output error" in caplog.text:
                    break
                await asyncio.sleep(0)
        with pytest.raises(HandoverError, match="flush failed: Input/output error"):
            await giver._flush(daemon, 20)

    asyncio.run(asyncio.wait_for(main(), 40))

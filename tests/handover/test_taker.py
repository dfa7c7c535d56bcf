# SPDX-License-Identifier: Apache-2.0
"""A process that takes over serves no request before the other one has committed."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from typing import TYPE_CHECKING, Any

from vhostblk.handover.taker import Taker
from vhostblk.handover.wire import (
    Channel,
    Commit,
    Configuration,
    Fds,
    Listening,
    Prepared,
    Ready,
    State,
)

if TYPE_CHECKING:
    import pytest


class Export:
    """An export that notes whether it was resumed."""

    resumed = False

    def resume(self) -> None:
        self.resumed = True


class FakeDaemon:
    """The part of a daemon that is needed here."""

    def __init__(self) -> None:
        self.exports = {"e": Export()}
        self.chardevs: Any = self
        self.inherited: dict[str, Any] = {}


def test_exports_go_on_once_the_other_process_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def build(*_arguments: object) -> None:
        pass

    monkeypatch.setattr(Taker, "_build_on_leash", build)

    async def main() -> None:
        ours, theirs = socket.socketpair()
        channel, other, fds = Channel(ours), Channel(theirs), Fds()
        with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.path.join(directory, "s"))
            listening.listen()
            place = fds.add(os.dup(listening.fileno()))
            configuration = Configuration(
                objects=[],
                blockdevs=[],
                exports=[],
                chardevs=[],
                handover=Listening(fd=place, path=None),
            )
            taker, daemon = Taker(channel, configuration, fds), FakeDaemon()
            taking = asyncio.create_task(taker.finish(daemon))  # type: ignore[arg-type]
            await other.receive(Prepared)
            await other.send(State(exports=[], guards=[], leash=0, since=0.0))
            await other.receive(Ready)
            early = daemon.exports["e"].resumed
            await other.send(Commit())
            await taking
            assert not early
            assert daemon.exports["e"].resumed
            taker.release()
            taker.handover.close()
        other.close()

    asyncio.run(asyncio.wait_for(main(), 20))

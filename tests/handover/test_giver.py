# SPDX-License-Identifier: Apache-2.0
"""The running daemon's side, with takers that fail."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING

import pytest

from vhostblk.daemon import Daemon
from vhostblk.errors import os_error
from vhostblk.handover import giver
from vhostblk.handover.errors import RefusedError
from vhostblk.handover.giver import Giver
from vhostblk.handover.wire import VERSION, Channel, Configuration, Hello
from vhostblk.net.listener import UnixAddress, listen

if TYPE_CHECKING:
    from pathlib import Path


def test_a_taker_is_accepted_once_there_are_descriptors_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "handover")
    monkeypatch.setattr(giver, "_ACCEPT_RETRY", 0.0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        accept = loop.sock_accept
        failures = [os_error(errno.EMFILE), os_error(errno.ENFILE)]

        async def accept_later(sock: socket.socket) -> tuple[socket.socket, object]:
            if failures:
                raise failures.pop()
            return await accept(sock)

        monkeypatch.setattr(loop, "sock_accept", accept_later)
        async with Daemon() as daemon:
            waiting = Giver(daemon, listen(UnixAddress(path)), lambda: None)
            waiting.start()
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(path)
                channel = Channel(connection)
                await channel.send(Hello(version=VERSION + 1))
                with pytest.raises(RefusedError):
                    await channel.receive(Configuration)
            await waiting.close()

    asyncio.run(main())
    assert [record.message for record in caplog.records] == [
        "hand-over: can't accept another process: Too many open files in system",
        "hand-over: can't accept another process: Too many open files",
        f"hand-over failed: the taker has version {VERSION + 1}, and this is {VERSION}",
    ]

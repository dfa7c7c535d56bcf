# SPDX-License-Identifier: Apache-2.0
"""Real clients on real sockets: `qemu.qmp`, several at once, and one that means no good."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from qemu.qmp import QMPClient

from vhostblk.daemon import Daemon
from vhostblk.qmp.monitors import add_monitor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def daemon_with_monitors(*addresses: dict[str, object]) -> AsyncIterator[Daemon]:
    """Run a daemon in this process with a monitor listening on each address."""
    async with Daemon() as daemon:
        for number, address in enumerate(addresses):
            options = {"addr": address, "server": True, "wait": False}
            backend = {"type": "socket", "data": options}
            await daemon.add_chardev({"id": f"c{number}", "backend": backend})
            add_monitor(daemon, f"c{number}")
        yield daemon


def unix(path: Path) -> dict[str, object]:
    return {"type": "unix", "data": {"path": str(path)}}


async def converse(path: Path, times: int = 1) -> None:
    """Connect with `qemu.qmp`, ask something and leave."""
    client = QMPClient()
    await client.connect(str(path))
    for _ in range(times):
        answer = await client.execute("query-version")
        assert isinstance(answer, dict)
        assert "vhostblk" in answer["package"]
    await client.disconnect()


def test_client_after_client(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "q"
        async with daemon_with_monitors(unix(path)):
            for _ in range(3):
                await converse(path)

    asyncio.run(main())


def test_an_inherited_listener(tmp_path: Path) -> None:
    async def main() -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "q"))
        listener.listen()
        address: dict[str, object] = {"type": "fd", "data": {"str": str(listener.detach())}}
        async with daemon_with_monitors(address):
            await converse(tmp_path / "q")

    asyncio.run(main())


def test_events_and_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        client = QMPClient()
        async with daemon_with_monitors(unix(tmp_path / "q")) as daemon:
            await client.connect(str(tmp_path / "q"))
            daemon.events.emit("WITHOUT_DATA")
            event = await client.events.get()
            assert event["event"] == "WITHOUT_DATA"
            await client.execute("quit")
            await daemon.stop_requested.wait()
        await client.disconnect()

    asyncio.run(main())


def test_twenty_clients_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        paths = [tmp_path / str(number) for number in range(20)]
        async with daemon_with_monitors(*map(unix, paths)):
            await asyncio.gather(*(converse(path, 20) for path in paths))

    asyncio.run(main())


def flood(path: Path, ended: threading.Event) -> None:
    """Send a line of 100 MB, half of it one token, and read nothing."""
    with socket.socket(socket.AF_UNIX) as bad:
        bad.connect(str(path))
        try:
            for _ in range(50):
                bad.sendall(b"a" * (1 << 20))
            bad.sendall(b"\n" + b"@" * (50 << 20))
        finally:
            ended.set()


def test_a_long_line_of_another(tmp_path: Path) -> None:
    async def main() -> None:
        ended = threading.Event()
        async with daemon_with_monitors(unix(tmp_path / "bad"), unix(tmp_path / "good")):
            thread = threading.Thread(target=flood, args=(tmp_path / "bad", ended), daemon=True)
            thread.start()
            rounds = 0
            while not ended.is_set():
                await converse(tmp_path / "good")
                rounds += 1
            assert rounds > 1
            await asyncio.to_thread(thread.join)
            await converse(tmp_path / "bad")

    asyncio.run(main())

# SPDX-License-Identifier: Apache-2.0
"""Storage daemons with a QMP monitor on an inherited socket, driven by `qemu.qmp`'s client."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qemu.qmp import EventListener, ExecuteError, QMPClient

from peers import debian

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Program:
    """A daemon's program; `version` is QEMU's major version, 0 for vhostblk."""

    name: str
    version: int
    command: tuple[str, ...]

    @property
    def available(self) -> bool:
        """Tell whether it is installed."""
        return all(shutil.which(word) is not None for word in self.command[:1]) and all(
            Path(word).exists() for word in self.command if word.startswith("/")
        )


VHOSTBLK = Program("vhostblk", 0, (sys.executable, "-m", "vhostblk"))
QEMU_7 = Program("qemu-7", 7, ("qemu-storage-daemon",))
QEMU_10 = Program("qemu-10", 10, debian.command(debian.TRIXIE.path / "usr/bin/qemu-storage-daemon"))


class Session:
    """A conversation with one daemon."""

    def __init__(self, client: QMPClient, process: subprocess.Popen[bytes]) -> None:
        self.client = client
        self.process = process
        self.events: list[tuple[str, Any]] = []
        self._listener = EventListener(event_filter=self._keep)
        client.register_listener(self._listener)

    def _keep(self, event: Any) -> bool:
        self.events.append((event["event"], dict(event).get("data")))
        return True

    async def run(self, command: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run a command; return {"return": …}, or the members of its error."""
        try:
            return {"return": await self.client.execute(command, arguments)}
        except ExecuteError as error:
            return {"class": error.error.error.class_, "desc": error.error.error.desc}

    async def wait_event(self, name: str) -> Any:
        """Wait for an event that comes, or has come; return its data."""
        async with asyncio.timeout(60):
            while True:
                event = await self._listener.get()
                if event["event"] == name:
                    return dict(event).get("data")


@asynccontextmanager
async def running(
    program: Program, log: Path, arguments: Sequence[str] = ()
) -> AsyncIterator[Session]:
    """Run a daemon and connect; it is killed at the end. `log` takes what it says."""
    process, near = start(program, log, arguments)
    client = QMPClient(program.name)
    try:
        session = Session(client, process)
        async with asyncio.timeout(60):
            await client.connect(near)
        yield session
    finally:
        process.kill()
        process.wait()
        try:
            await client.disconnect()
        except Exception:  # the connection broke, as was to be expected
            pass
        near.close()


def start(
    program: Program, log: Path, arguments: Sequence[str] = (), directory: Path | None = None
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a daemon in a directory; return its process and the socket of its monitor."""
    near, far = socket.socketpair()
    with far, log.open("wb") as output:
        process = subprocess.Popen(
            [
                *program.command,
                *("--chardev", f"socket,id=monitor,fd={far.fileno()}"),
                *("--monitor", "chardev=monitor"),
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[far.fileno()],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    return process, near

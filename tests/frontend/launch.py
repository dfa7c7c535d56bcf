# SPDX-License-Identifier: Apache-2.0
"""Starts a storage daemon, ours or the real one, for a front-end to connect to.

Both have the same options, so a test with a `Daemon` runs on both. With an inherited socket, the
connection waits in the backlog until the daemon accepts it. With a path, connecting is tried again
until it works, the daemon exits, or the time is up.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from tests.frontend.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType


class Program(Enum):
    """The daemon to run; the value is its command."""

    VHOSTBLK = (sys.executable, "-m", "vhostblk")
    QEMU = ("qemu-storage-daemon",)

    @property
    def available(self) -> bool:
        """Whether it is installed."""
        return shutil.which(self.value[0]) is not None


#: Size of the image that tests export.
IMAGE_SIZE = 4 << 20


class DaemonExitedError(Exception):
    """The daemon exited before a connection was made; `str()` has its output."""


class Daemon:
    """A running storage daemon with one vhost-user-blk export."""

    def __init__(
        self,
        program: Program,
        directory: Path,
        blockdevs: Sequence[str],
        export: str,
        *,
        inherited: bool = True,
        extra: Sequence[str] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        """Start it.

        `blockdevs` are the values of `--blockdev`; `export` is that of `--export` without the
        address, which is a path in `directory`. The daemon listens there, or with `inherited` gets
        a socket that listens already. `extra` are more arguments.
        """
        self.socket_path = directory / f"{program.name.lower()}.sock"
        self._output = directory / f"{program.name.lower()}.err"
        arguments = [*program.value, *extra]
        for blockdev in blockdevs:
            arguments += ["--blockdev", blockdev]
        listening: socket.socket | None = None
        if inherited:
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listening.bind(str(self.socket_path))
            listening.listen(16)
            address = f"addr.type=fd,addr.str={listening.fileno()}"
        else:
            address = f"addr.type=unix,addr.path={self.socket_path}"
        arguments += ["--export", f"type=vhost-user-blk,{export},{address}"]
        root = str(Path(__file__).resolve().parents[2])
        search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[listening.fileno()] if listening is not None else [],
                env={**os.environ, "PYTHONPATH": search, **(env or {})},
            )
        if listening is not None:
            listening.close()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def connect(self, timeout: float = 30.0) -> Connection:
        """Connect a front-end; may be called many times. Raises DaemonExitedError."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                return Connection.connect(self.socket_path, timeout)
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise
            try:
                self.process.wait(0.005)
            except subprocess.TimeoutExpired:
                continue
            raise DaemonExitedError(self.output())

    def output(self) -> str:
        """Return the daemon's output so far."""
        return self._output.read_text(errors="replace")

    def stop(self, timeout: float = 30.0) -> int:
        """Ask the daemon to exit (SIGTERM); return its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                return self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return self.process.returncode

    def kill(self) -> None:
        """Kill the daemon (SIGKILL)."""
        self.process.kill()
        self.process.wait()


def raw_file(path: Path, *, writable: bool = True, node_name: str = "disk") -> list[str]:
    """Return the `--blockdev` values for a raw image file."""
    common = f"discard=unmap,read-only={'off' if writable else 'on'}"
    file_name = f"{node_name}-file"
    return [
        f"driver=file,node-name={file_name},filename={path},{common}",
        f"driver=raw,node-name={node_name},file={file_name},{common}",
    ]

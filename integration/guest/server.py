# SPDX-License-Identifier: Apache-2.0
"""The storage daemon under test, as a process.

`Server.export` takes what the command lines of vhostblk and of QEMU's `qemu-storage-daemon` have in
common, so that every test that uses it can be run against both.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Self

from integration.guest.errors import HarnessError
from integration.guest.programs import qemu_program

_START_TIMEOUT = 10.0
_STOP_TIMEOUT = 20.0
_ROOT = Path(__file__).parents[2]


class Program(Enum):
    """Which storage daemon serves."""

    VHOSTBLK = "vhostblk"
    QEMU = "qemu-storage-daemon"

    def command(self) -> list[str]:
        """Give the beginning of the command line."""
        if self is Program.VHOSTBLK:
            return [sys.executable, "-m", "vhostblk"]
        return qemu_program(self.value)


@dataclass(frozen=True)
class Export:
    """A raw image exported as a vhost-user-blk device."""

    image: Path
    writable: bool = True
    queues: int = 1
    #: Further properties of the protocol node and of the export, in keyval syntax.
    node: str = ""
    extra: str = ""

    def arguments(self, address: str) -> list[str]:
        """Arguments that both daemons know; `address` is `addr.type=…`."""
        read_only = "" if self.writable else ",read-only=on"
        file = f"driver=file,node-name=file,filename={self.image},discard=unmap{read_only}"
        raw = f"driver=raw,node-name=disk,file=file,discard=unmap{read_only}"
        export = f"type=vhost-user-blk,id=export,node-name=disk,{address}"
        export += f",writable={_on_off(self.writable)},num-queues={self.queues}"
        return [
            *("--blockdev", file + _more(self.node)),
            *("--blockdev", raw),
            *("--export", export + _more(self.extra)),
        ]


@dataclass
class Server:
    """A daemon process: `with Server(...)` is running inside, and is stopped at the end."""

    program: Program
    arguments: list[str]
    directory: Path
    pass_fds: tuple[int, ...] = ()
    #: What vhostblk may say in its log; whatever does not match fails the test.
    expected_log: str = "(?!)"
    environment: dict[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, exception_type: object, *rest: object) -> None:
        if self.alive():
            status = self.stop()
            if status and exception_type is None:
                raise HarnessError(f"{self.program.value} ended with status {status}{self.log()}")
        if exception_type is None and self.program is Program.VHOSTBLK:
            self._judge_log()

    @property
    def pidfile(self) -> Path:
        """Exists while front-ends may connect."""
        return self.directory / "daemon.pid"

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None, "the daemon has not been started"
        return self._process.pid

    def start(self) -> None:
        """Start and wait until front-ends may connect."""
        assert not self.alive(), "the daemon runs already"
        self.directory.mkdir(parents=True, exist_ok=True)
        # A daemon that was killed leaves its pidfile behind; it would look ready at once.
        self.pidfile.unlink(missing_ok=True)
        with (self.directory / "daemon.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=self.pass_fds,
                env=self._environment(),
            )
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._ready():
            if self._process.poll() is not None:
                raise HarnessError(f"{self.program.value} did not start{self.log()}")
            if time.monotonic() > deadline:
                self._process.kill()
                raise HarnessError(f"{self.program.value} does not get ready{self.log()}")
            time.sleep(0.005)

    def replace(self) -> None:
        """Have a new process take over; the daemon has `--handover` and `--takeover`."""
        assert self._process is not None, "the daemon has not been started"
        former = self._process
        with (self.directory / "daemon.log").open("ab") as log:
            taker = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
            )
        try:
            status = former.wait(_START_TIMEOUT)
        except subprocess.TimeoutExpired:
            taker.kill()
            taker.wait()
            raise HarnessError(f"{self.program.value} isn't taken over{self.log()}") from None
        self._process = taker
        if status:
            raise HarnessError(f"{self.program.value} ended with status {status}{self.log()}")

    def run_to_end(self) -> subprocess.CompletedProcess[str]:
        """Start a daemon that is expected to give up by itself."""
        return subprocess.run(
            self._command(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            pass_fds=self.pass_fds,
            env=self._environment(),
            timeout=_START_TIMEOUT,
            check=False,
        )

    def alive(self) -> bool:
        """Tell whether the daemon runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, give the exit status."""
        assert self._process is not None, "the daemon has not been started"
        self._process.send_signal(number)
        try:
            return self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise HarnessError(f"{self.program.value} does not stop{self.log()}") from None

    def log(self) -> str:
        """Everything that the daemon has said, to be added to an error."""
        path = self.directory / "daemon.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        return f"\n--- {path} ---\n{text}"

    def _ready(self) -> bool:
        try:
            return bool(self.pidfile.read_text().strip())
        except FileNotFoundError:
            return False

    def _judge_log(self) -> None:
        lines = (self.directory / "daemon.log").read_text(errors="replace").splitlines()
        unexpected = [line for line in lines if not re.search(self.expected_log, line)]
        if unexpected:
            raise HarnessError("unexpected words of the daemon:\n" + "\n".join(unexpected))

    def _command(self) -> list[str]:
        return [*self.program.command(), *self.arguments, "--pidfile", str(self.pidfile)]

    def _environment(self) -> dict[str, str]:
        # The daemon of this source tree, wherever the tests are run from.
        return os.environ | {"PYTHONPATH": str(_ROOT)} | self.environment


def serve(program: Program, export: Export, directory: Path) -> Server:
    """Serve on `directory`/v.sock."""
    address = f"addr.type=unix,addr.path={directory}/v.sock"
    return Server(program, export.arguments(address), directory)


def listen(path: Path) -> socket.socket:
    """Make a listening socket to pass to a daemon."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def _on_off(value: bool) -> str:
    return "on" if value else "off"


def _more(properties: str) -> str:
    return f",{properties}" if properties else ""

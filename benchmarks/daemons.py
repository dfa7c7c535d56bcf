# SPDX-License-Identifier: Apache-2.0
"""Starts the daemons under comparison, and measures what they consume."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from peers import debian

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[1]
QEMU = "qemu-storage-daemon"
START_TIMEOUT = 30.0


class DaemonError(Exception):
    """A daemon that is missing, did not start, or died."""


@dataclass(frozen=True)
class Backend:
    """One way to serve a disk. `aio` is for images in files; None leaves the default.

    `grace` is the time to end in, in seconds, before it is killed. `raw`: it serves a raw image
    where a case has another format.
    """

    name: str
    command: tuple[str, ...]
    aio: str | None = None
    iothread: bool = True
    environment: tuple[tuple[str, str], ...] = ()
    grace: float = 5.0
    raw: bool = False


@dataclass(frozen=True)
class Disk:
    """What a daemon is to serve: the options of its block node without name and aio.

    `objects` are those that the node refers to.
    """

    driver: str
    options: tuple[str, ...] = ()
    writable: bool = True
    queues: int = 1
    objects: tuple[str, ...] = ()


@dataclass
class Daemon:
    """A running daemon."""

    backend: Backend
    process: subprocess.Popen[bytes]
    sockets: Sequence[Path]
    log: Path
    start_seconds: float = field(default=0.0)

    def cpu_seconds(self) -> float:
        """CPU time of all its threads so far, those that have ended included."""
        return cpu_seconds(self.process.pid)

    def memory(self) -> int:
        """Resident bytes, memory shared with the front-end excepted."""
        return private_memory(self.process.pid)

    def require_alive(self) -> None:
        """Raise DaemonError with the daemon's last words if it has ended."""
        if self.process.poll() is not None:
            words = self.log.read_text(errors="replace").strip()[-2000:]
            raise DaemonError(f"{self.backend.name} ended ({self.process.returncode}): {words}")


def cpu_seconds(pid: int) -> float:
    """CPU time of a process by its CPU clock (the kernel's encoding of a process's clock id)."""
    return time.clock_gettime(~pid << 3 | 2)


def private_memory(pid: int) -> int:
    """Resident bytes of a process without shared memory: anonymous and file pages."""
    total = 0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("RssAnon", "RssFile"):
            total += int(value.split()[0]) * 1024
    return total


def vhostblk_backend(lane: str | None = None, *, iothread: bool = True) -> Backend:
    """The project's daemon, from this checkout, whatever the working directory has."""
    environment = [("PYTHONPATH", str(ROOT)), ("PYTHONSAFEPATH", "1")]
    if lane is not None:
        environment.append(("VHOSTBLK_LANE", lane))
    name = f"vhostblk:{lane}" if lane else "vhostblk"
    command = (sys.executable, "-m", "vhostblk")
    return Backend(name, command, iothread=iothread, environment=tuple(environment))


def qemu_backend(
    aio: str | None = None, *, iothread: bool = True, where: Path | None = None
) -> Backend:
    """The QEMU storage daemon; DaemonError where there is none.

    `where` is a program, or the root directory of a Debian system that has one.
    """
    name = f"qemu:{aio}" if aio else "qemu"
    # Some versions hang on SIGTERM just after a client has left.
    return Backend(name, _qemu_command(where), aio=aio, iothread=iothread, grace=0.5)


def _qemu_command(where: Path | None) -> tuple[str, ...]:
    if where is None and "QEMU_STORAGE_DAEMON" in os.environ:
        where = Path(os.environ["QEMU_STORAGE_DAEMON"])
    if where is None:
        found = shutil.which(QEMU)
        if found is None:
            raise DaemonError(f"{QEMU} is not installed (--qemu says where else it is)")
        return (found,)
    if where.is_dir():
        try:
            return debian.program(QEMU, where.resolve())
        except debian.RootError as error:
            raise DaemonError(f"--qemu: {error}") from error
    if not os.access(where, os.X_OK):
        raise DaemonError(f"--qemu {where}: not a program")
    return (str(where.resolve()),)


def version(backend: Backend) -> str:
    """First line of what the daemon says of its version."""
    done = subprocess.run(
        [*backend.command, "--version"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **dict(backend.environment)},
    )
    return (done.stdout.strip() or "unknown").splitlines()[0]


def _arguments(backend: Backend, disk: Disk, sockets: Sequence[Path]) -> list[str]:
    arguments = ["--object", "iothread,id=io0"] if backend.iothread else []
    for definition in disk.objects:
        arguments += ["--object", definition]
    for number, path in enumerate(sockets):
        node = [f"driver={disk.driver}", f"node-name=disk{number}", *disk.options]
        if backend.aio and disk.driver == "file":
            node.append(f"aio={backend.aio}")
        if backend.aio and disk.driver == "qcow2":
            node.append(f"file.aio={backend.aio}")
        export = [
            "type=vhost-user-blk",
            f"id=export{number}",
            f"node-name=disk{number}",
            "addr.type=unix",
            f"addr.path={path}",
            f"writable={'on' if disk.writable else 'off'}",
            f"num-queues={disk.queues}",
        ]
        if backend.iothread:
            export.append("iothread=io0")
        arguments += ["--blockdev", ",".join(node), "--export", ",".join(export)]
    return arguments


def _accepts(path: Path) -> bool:
    """Does somebody listen? Connecting is the only sure sign, and hangs up at once."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _await_sockets(daemon: Daemon) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    for path in daemon.sockets:
        while not _accepts(path):
            daemon.require_alive()
            if time.monotonic() > deadline:
                raise DaemonError(f"{daemon.backend.name}: nobody listens on {path}")
            time.sleep(0.002)


@contextmanager
def running(backend: Backend, disk: Disk, directory: Path, exports: int = 1) -> Iterator[Daemon]:
    """A daemon that serves `disk` on `exports` sockets in `directory`."""
    stem = backend.name.replace(":", "-")
    sockets = [directory / f"{stem}-{number}.sock" for number in range(exports)]
    log = directory / f"{stem}.log"
    begin = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*backend.command, *_arguments(backend, disk, sockets)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **dict(backend.environment)},
        )
    daemon = Daemon(backend, process, sockets, log)
    try:
        _await_sockets(daemon)
        daemon.start_seconds = time.monotonic() - begin
        yield daemon
    finally:
        stop(process, backend.grace)
        for path in sockets:
            path.unlink(missing_ok=True)


def stop(process: subprocess.Popen[bytes], grace: float) -> None:
    """End a process: politely, then by force."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()

# SPDX-License-Identifier: Apache-2.0
"""Helpers as processes: ours, and QEMU's."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from peers import debian
from tests.cli.process import PATIENCE, environment, wait_for_socket

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_QEMU = debian.TRIXIE.path / "usr/bin/qemu-pr-helper"


def ours(*arguments: str) -> list[str]:
    """Return the words that start our helper."""
    return [sys.executable, "-m", "vhostblk.pr.helper", *arguments]


def has_qemus() -> bool:
    """Whether QEMU's helper is there."""
    return _QEMU.exists()


def qemus(library: Path, *arguments: str) -> list[str]:
    """Return the words that start QEMU's helper with a library loaded into it."""
    loader, *rest = debian.command(_QEMU)
    return [loader, "--preload", str(library), *rest, *arguments]


class Helper:
    """A process that listens at `path`."""

    def __init__(self, process: subprocess.Popen[str], path: Path) -> None:
        self.process = process
        self.path = path

    def descriptors(self) -> int:
        """Count the descriptors that it has open."""
        return self._count("fd")

    def threads(self) -> int:
        """Count its threads."""
        return self._count("task")

    def states(self) -> set[str]:
        """Return the states that its threads are in, as proc(5) has them."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks}

    def _count(self, directory: str) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/{directory}").iterdir()))

    def status(self) -> dict[str, str]:
        """Return what the kernel says of it."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        pairs = (line.split(":", 1) for line in text.splitlines())
        return {name: value.strip() for name, value in pairs}

    def end(self, number: int = signal.SIGTERM) -> str:
        """End it with a signal; return what it has logged."""
        self.process.send_signal(number)
        log = self.process.communicate(timeout=PATIENCE)[1]
        assert self.process.returncode == 0, log
        return log


@contextmanager
def running(
    directory: Path,
    *arguments: str,
    library: Path | None = None,
    qemu: bool = False,
    compiled: bool | None = None,
    program: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Iterator[Helper]:
    """Have a helper run inside the block, with a library loaded into it.

    `compiled`: whether ours uses compiled code; None: as the environment says. `program` are the
    words that start another one in place of ours.
    """
    path = directory / ("q.sock" if qemu else "p.sock" if compiled is False else "h.sock")
    words = ["-k", str(path), *arguments]
    environ = {**environment(), **(variables or {})}
    if compiled is not None:
        environ["VHOSTBLK_ENGINE"] = "on" if compiled else "off"
    if qemu:
        assert library is not None
        command = qemus(library, *words)
    else:
        command = [*program, *words] if program else ours(*words)
        if library is not None:
            # Sanitizers come first.
            environ["LD_PRELOAD"] = f"{environ.get('LD_PRELOAD', '')}:{library}"
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_socket(process, str(path))
        yield Helper(process, path)
    finally:
        process.kill()
        process.communicate()

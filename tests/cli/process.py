# SPDX-License-Identifier: Apache-2.0
"""Runs the command as its users do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parents[2]

#: Seconds for what takes milliseconds on an idle machine.
PATIENCE = 30


def command(*arguments: str) -> list[str]:
    """Return the words that start vhostblk."""
    return [sys.executable, "-m", "vhostblk", *arguments]


def environment() -> dict[str, str]:
    """Return an environment in which the package is found from any directory."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(
    *arguments: str, cwd: Path, pass_fds: Sequence[int] = (), wrapper: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run vhostblk to its end."""
    return subprocess.run(
        [*wrapper, *command(*arguments)],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        pass_fds=pass_fds,
    )


def refusal(
    *arguments: str, cwd: Path, pass_fds: Sequence[int] = (), wrapper: Sequence[str] = ()
) -> str:
    """Return the one line on stderr of a run that fails and changes nothing in `cwd`."""
    before = _snapshot(cwd)
    done = run(*arguments, cwd=cwd, pass_fds=pass_fds, wrapper=wrapper)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("vhostblk: ")
    assert _snapshot(cwd) == before
    return done.stderr.removeprefix("vhostblk: ").rstrip("\n")


def _snapshot(directory: Path) -> dict[str, tuple[int, int, int]]:
    return {
        path.name: (info.st_ino, info.st_size, info.st_mtime_ns)
        for path in directory.iterdir()
        for info in [path.lstat()]
    }


@contextmanager
def running(
    *arguments: str, cwd: Path, pass_fds: Sequence[int] = (), wrapper: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Have vhostblk run inside the block."""
    process = subprocess.Popen(
        [*wrapper, *command(*arguments)],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for a condition; fail when it takes too long, or when the process ends before."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if process is not None and process.poll() is not None:
            assert process.stderr is not None
            raise AssertionError(f"ended with {process.returncode}: {process.stderr.read()}")
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.005)


def wait_for_socket(process: subprocess.Popen[str], name: str) -> None:
    """Wait until a process listens on a Unix socket; its file is there a little earlier."""
    wait_until(lambda: _listens(process.pid, name), process)


def _listens(pid: int, name: str) -> bool:
    held = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            held.add(str(link.readlink()))
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        _, _, _, flags, _, _, inode, *path = line.split(None, 7)
        if flags == "00010000" and path == [name] and f"socket:[{inode}]" in held:
            return True
    return False

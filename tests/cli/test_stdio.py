# SPDX-License-Identifier: Apache-2.0
"""Programs that are started with standard descriptors closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.process import PATIENCE, command, environment, wait_for_socket, wait_until

CLOSED = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]
EXPORT = "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={path}"
PROGRAMS = {
    "vhostblk": command("--blockdev", "null-co,node-name=n", "--export", EXPORT),
    "helper": [sys.executable, "-m", "vhostblk.pr.helper", "--socket", "{path}"],
}


def started(words: list[str], closed: str, cwd: Path) -> subprocess.Popen[str]:
    words = [word.replace("{path}", str(cwd / "v.sock")) for word in words]
    return subprocess.Popen(
        ["bash", "-c", f'exec "$@" {closed}', "bash", *words],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("name", PROGRAMS)
def test_it_serves(tmp_path: Path, name: str, closed: str) -> None:
    process = started(PROGRAMS[name], closed, tmp_path)
    try:
        wait_for_socket(process, str(tmp_path / "v.sock"))
        for fd in range(3):
            if fd == 0 or "<&- >&-" in closed:
                target = Path(f"/proc/{process.pid}/fd/{fd}").readlink()
                assert target == Path("/dev/null")
        process.terminate()
        assert process.communicate(timeout=PATIENCE) == ("", "")
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("name", PROGRAMS)
def test_in_the_background(tmp_path: Path, name: str, closed: str) -> None:
    pidfile = tmp_path / "pid"
    # Either program takes any beginning of its option's name.
    parent = started([*PROGRAMS[name], "--daemon", "--pidfile", str(pidfile)], closed, tmp_path)
    assert parent.communicate(timeout=PATIENCE) == ("", "")
    assert parent.returncode == 0
    pid = int(pidfile.read_text())
    assert all(Path(f"/proc/{pid}/fd/{fd}").readlink() == Path("/dev/null") for fd in range(3))
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not pidfile.exists())


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("name", PROGRAMS)
def test_errors_still_end_with_status_1(tmp_path: Path, name: str, closed: str) -> None:
    process = started([*PROGRAMS[name], "--bogus"], closed, tmp_path)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert ("bogus" in said) is ("2>&-" not in closed)

# SPDX-License-Identifier: Apache-2.0
"""`--chardev` and `--monitor` of the command."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

from tests.cli.process import PATIENCE, command, environment, refusal, run, running, wait_until

if TYPE_CHECKING:
    from pathlib import Path

QUIT = b'{"execute":"qmp_capabilities"}{"execute":"quit"}\n'


def test_a_monitor_on_stdio(tmp_path: Path) -> None:
    done = subprocess.run(
        command("--chardev", "stdio,id=m", "--monitor", "m"),
        cwd=tmp_path,
        env=environment(),
        input=QUIT,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert "QMP" in replies[0]
    assert replies[1:] == [{"return": {}}, {"return": {}}]


def test_stdio_on_a_terminal_leaves_it_as_it_was(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command("--chardev", "stdio,id=m,signal=off", "--monitor", "m"),
        cwd=tmp_path,
        env=environment(),
        stdin=slave,
        stdout=slave,
    )
    os.write(master, QUIT)
    assert process.wait(PATIENCE) == 0
    assert os.get_blocking(slave)
    os.close(master)
    os.close(slave)


def test_a_socket_is_removed_at_the_end(tmp_path: Path) -> None:
    options = ("--chardev", "socket,id=m,path=q,server=on,wait=off", "--monitor", "m")
    with running(*options, cwd=tmp_path) as process:
        wait_until((tmp_path / "q").exists, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert not (tmp_path / "q").exists()


def test_start_up_waits_for_a_client_until_a_signal_comes(tmp_path: Path) -> None:
    options = ("--chardev", "socket,id=m,path=q,server=on", "--pidfile", "pid")
    with running(*options, cwd=tmp_path) as process:
        wait_until((tmp_path / "q").exists, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert list(tmp_path.iterdir()) == []
    with running(*options, cwd=tmp_path) as process:
        with socket.socket(socket.AF_UNIX) as client:
            # The file is there before somebody listens.
            wait_until(lambda: client.connect_ex(str(tmp_path / "q")) == 0, process)
            wait_until((tmp_path / "pid").exists, process)


def test_refusals(tmp_path: Path) -> None:
    assert refusal("--chardev", "stdio,id=a", "--chardev", "stdio,id=b", cwd=tmp_path) == (
        "--chardev stdio,id=b: cannot use stdio by multiple character devices"
    )
    assert refusal("--chardev", "null,id=a", "--chardev", "null,id=a", cwd=tmp_path) == (
        "--chardev null,id=a: Chardev with id 'a' already exists"
    )
    assert refusal("--daemonize", "--chardev", "stdio,id=a", cwd=tmp_path) == (
        "--chardev stdio,id=a: cannot use stdio with -daemonize"
    )


def test_help(tmp_path: Path) -> None:
    done = run("--chardev", "help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("Available chardev backend types:\n  file\n")
    done = run("--chardev", "socket,help", cwd=tmp_path)
    assert "  reconnect-ms=<num>\n" in done.stdout

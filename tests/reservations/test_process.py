# SPDX-License-Identifier: Apache-2.0
"""The daemon's process: a manager on the command line, and inside the sandbox."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.process import PATIENCE, refusal, running, wait_for_socket
from tests.reservations.conftest import helper
from vhostblk.reservations.wire import Reply

if TYPE_CHECKING:
    from pathlib import Path

    from vhostblk.reservations.wire import Request

READ = {"node-name": "disk", "service-action": "read-keys"}
CLEAR = {"node-name": "disk", "service-action": "clear", "key": 1}


class Monitor:
    """A connection to a daemon's monitor."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rb")
        assert "QMP" in json.loads(self.lines.readline())
        self.events: list[Any] = []
        self.execute("qmp_capabilities")

    def execute(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        words = {"execute": name, **({"arguments": arguments} if arguments else {})}
        self.socket.sendall(json.dumps(words).encode())
        while "event" in (answer := json.loads(self.lines.readline())):
            self.events.append((answer["event"], answer["data"]))
        return answer.get("return", answer)

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


def good(request: Request) -> Reply:
    return Reply(0, b"", bytes(8) if request.cdb[0] == 0x5E else b"")


@pytest.mark.parametrize("kind", ["helper", "kernel"])
def test_inside_the_sandbox(tmp_path: Path, device: str, kind: str) -> None:
    """No file but the named ones can be opened; the helper is found again after it has ended."""
    path = tmp_path / "h.sock"
    made = {"helper": f"pr-manager-helper,id=pr,path={path}",
            "kernel": "x-vhostblk-pr-manager-kernel,id=pr"}  # fmt: skip
    words: tuple[str, ...] = ("--sandbox", "files=deny", "--object", made[kind])
    words += ("--blockdev", f"host_device,node-name=disk,filename={device},pr-manager=pr")
    words += ("--chardev", "socket,id=c,path=q.sock,server=on,wait=off", "--monitor", "c")
    if kind == "kernel":
        with running(*words, cwd=tmp_path) as daemon:
            wait_for_socket(daemon, "q.sock")
            monitor = Monitor(tmp_path / "q.sock")
            # The device's answer, and not that of a filter of system calls.
            said = monitor.execute("x-vhostblk-pr-out", CLEAR)["error"]["desc"]
            assert "sense 5/20/00" in said or "sense 5/24/00" in said
            monitor.close()
        return
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        first.enter_context(helper(path, good))
        daemon = stack.enter_context(running(*words, cwd=tmp_path))
        wait_for_socket(daemon, "q.sock")
        monitor = Monitor(tmp_path / "q.sock")
        assert monitor.execute("x-vhostblk-pr-in", READ) == {"generation": 0, "keys": []}
        first.close()
        stack.enter_context(helper(path, good))
        assert monitor.execute("x-vhostblk-pr-out", CLEAR) == {}
        changes = [data["connected"] for _, data in monitor.events]
        assert changes == [False, True]
        monitor.close()


def test_a_helper_that_is_not_there(tmp_path: Path) -> None:
    said = refusal("--object", "pr-manager-helper,id=pr,path=/none/x", cwd=tmp_path)
    assert said.endswith("Failed to connect to '/none/x': No such file or directory")


def test_no_path(tmp_path: Path) -> None:
    said = refusal("--object", "pr-manager-helper,id=pr", cwd=tmp_path)
    assert said.endswith("Parameter 'path' is missing")

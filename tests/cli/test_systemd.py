# SPDX-License-Identifier: Apache-2.0
"""As a service of systemd: sockets that it hands over, readiness, and the units."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.cli.process import PATIENCE, ROOT, command, environment, wait_until
from vhostblk import systemd

if TYPE_CHECKING:
    from pathlib import Path

UNITS = sorted((ROOT / "contrib/systemd").iterdir())


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    """Listen as the service manager does."""
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(PATIENCE)
    return manager


def activated(directory: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start as systemd does, with a second socket in between."""
    listeners = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for number, listener in enumerate(listeners):
        listener.bind(str(directory / f"{number}.sock"))
        listener.listen()
    fds = [listener.fileno() for listener in listeners]
    moved = " ".join(f"{3 + number}<&{fd}" for number, fd in enumerate(fds))
    process = subprocess.Popen(
        ["bash", "-c", f'export LISTEN_PID=$$; exec "$@" {moved}', "bash", *command(*arguments)],
        cwd=directory,
        env={
            **environment(),
            "LISTEN_FDS": "2",
            "LISTEN_FDNAMES": "other:disk",
            "NOTIFY_SOCKET": str(directory / "notify"),
        },
        pass_fds=fds,
        stderr=subprocess.PIPE,
    )
    for listener in listeners:
        listener.close()
    return process


def test_a_named_socket_is_taken_over_and_the_manager_told(
    tmp_path: Path, manager: socket.socket
) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(4096))
    with manager, activated(tmp_path, "disk.img", "--addr.type=fd,addr.str=disk") as process:
        assert manager.recv(100) == b"READY=1"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "1.sock"))
        process.send_signal(signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"
        assert process.communicate(timeout=PATIENCE)[1] == b""
        assert process.returncode == 0
    assert (tmp_path / "1.sock").exists(), "the socket is systemd's"


def test_a_name_that_no_socket_has(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(4096))
    with activated(tmp_path, "disk.img", "--addr.type=fd,addr.str=tape") as process:
        said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 1
    assert said.endswith(b"Unable to parse FD number tape\n")


@pytest.mark.parametrize(
    ("variables", "fd"),
    [
        ({}, 4),
        ({"LISTEN_PID": "1"}, None),
        ({"LISTEN_FDS": "1"}, None),
        ({"LISTEN_FDS": "many"}, None),
        ({"LISTEN_FDNAMES": ""}, None),
        ({"LISTEN_FDNAMES": "b:b"}, 3),
    ],
)
def test_only_what_was_handed_to_this_process(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], fd: int | None
) -> None:
    given = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}
    for name, value in {**given, **variables}.items():
        monkeypatch.setenv(name, value)
    assert systemd.activated_fd("b") == fd


@pytest.mark.parametrize("address", ["", "nonsense", "/nonexistent/socket", "@nobody-listens"])
def test_a_manager_that_is_not_there(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    systemd.notify("READY=1")


def test_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0vhostblk-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@vhostblk-test-{os.getpid()}")
        systemd.notify("READY=1")
        assert manager.recv(100) == b"READY=1"


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="needs systemd")
def test_systemds_own_activation(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(4096))
    path = tmp_path / "v.sock"
    program = ["systemd-socket-activate", "-l", str(path), "--fdname=disk"]
    program += [f"--setenv={name}={value}" for name, value in environment().items()]
    words = command("disk.img", "--addr.type=fd,addr.str=disk")
    with subprocess.Popen([*program, *words], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                wait_until(lambda: client.connect_ex(str(path)) == 0)
                client.sendall(bytes([1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]))  # GET_FEATURES
                assert len(client.recv(20, socket.MSG_WAITALL)) == 20
        finally:
            process.terminate()
        assert process.wait(PATIENCE) == 0


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_understands_the_units() -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, UNITS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{ROOT}/contrib/systemd:"},
    )
    ours = [line for line in done.stderr.splitlines() if "vhostblk" in line]
    assert ours == []

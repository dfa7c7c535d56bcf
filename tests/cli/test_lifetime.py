# SPDX-License-Identifier: Apache-2.0
"""From start to end: readiness, process ID file, going to the background, signals."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cli.process import (
    PATIENCE,
    command,
    environment,
    refusal,
    run,
    running,
    wait_for_socket,
    wait_until,
)
from tests.frontend.connection import Connection
from vhostblk.block.drivers.qcow2.header import Header, encode
from vhostblk.block.drivers.qcow2.layout import Geometry

NODE = ("--blockdev", "null-co,node-name=n,size=1048576")
LISTEN = (
    *NODE,
    *("--export", "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=v.sock"),
)
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_it_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with running(*LISTEN, "--pidfile", "pid", cwd=tmp_path) as daemon:
        pidfile = tmp_path / "pid"
        wait_until(lambda: pidfile.exists() and pidfile.read_text() != "", daemon)
        assert pidfile.read_text() == f"{daemon.pid}\n"
        assert pidfile.stat().st_mode & 0o777 == 0o600
        connect(tmp_path / "v.sock")
        daemon.send_signal(number)
        assert daemon.communicate(timeout=PATIENCE) == ("", "")
        assert daemon.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_one_daemon_a_pidfile(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    with running(*LISTEN, "--pidfile", "pid", cwd=tmp_path) as daemon:
        wait_until(lambda: pidfile.exists() and pidfile.read_text() != "", daemon)
        said = refusal("--pidfile", "pid", cwd=tmp_path)
        assert said.startswith("cannot create PID file: Cannot lock pid file: ")
        if qemu := shutil.which("qemu-storage-daemon"):
            done = subprocess.run([qemu, "--pidfile", str(pidfile)], check=False, timeout=PATIENCE)
            assert done.returncode == 1
        assert pidfile.read_text() == f"{daemon.pid}\n"


def test_a_stale_pidfile_is_taken_over(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    pidfile.write_text("12345678\n")
    with running("--pidfile", "pid", cwd=tmp_path) as daemon:
        wait_until(lambda: pidfile.read_text() == f"{daemon.pid}\n", daemon)


def test_a_pidfile_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    with running("--pidfile", "pid", cwd=tmp_path) as daemon:
        wait_until(lambda: pidfile.exists() and pidfile.read_text() != "", daemon)
        pidfile.unlink()
        pidfile.write_text("1\n")
        daemon.terminate()
        assert daemon.wait(PATIENCE) == 0
    assert pidfile.read_text() == "1\n"


def test_the_parent_ends_when_clients_may_connect(tmp_path: Path) -> None:
    done = run(*LISTEN, "--daemonize", "--pidfile", "pid", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pid = int((tmp_path / "pid").read_text())
    try:
        connect(tmp_path / "v.sock")
        assert os.getsid(pid) not in (pid, os.getsid(0))
        process = Path(f"/proc/{pid}")
        assert (process / "cwd").readlink() == Path("/")
        assert {(process / f"fd/{fd}").readlink() for fd in (0, 1, 2)} == {Path("/dev/null")}
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not any(tmp_path.iterdir()))


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_as_early_as_possible_leave_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with running(*LISTEN, "--pidfile", "pid", cwd=tmp_path) as daemon:
        wait_for_socket(daemon, "v.sock")
        daemon.send_signal(number)
        daemon.send_signal(number)
        assert daemon.wait(PATIENCE) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_parent_fails_with_the_child(tmp_path: Path) -> None:
    option = "file,node-name=n,filename=no.img"
    said = refusal("--daemonize", "--pidfile", "pid", "--blockdev", option, cwd=tmp_path)
    assert said.endswith("Could not open 'no.img': No such file or directory")


@pytest.mark.parametrize("writable", ["on", "off"])
def test_the_short_form_exports_an_image(tmp_path: Path, writable: str) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(4096))
    address = f"--addr.type=unix,addr.path=v.sock,writable={writable}"
    with running("disk.img", address, cwd=tmp_path) as daemon:
        wait_for_socket(daemon, "v.sock")
        connect(tmp_path / "v.sock")
        daemon.terminate()
        assert daemon.communicate(timeout=PATIENCE) == ("", "")
        assert daemon.returncode == 0


@pytest.mark.parametrize("source", [("disk.img",), NODE])
def test_an_inherited_socket(tmp_path: Path, source: tuple[str, ...]) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(4096))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "inherited"))
        listener.listen()
        fd = listener.fileno()
        address = f"--addr.type=fd,addr.str={fd},num-queues=2"
        with running(*source, address, "--pidfile", "pid", cwd=tmp_path, pass_fds=[fd]) as daemon:
            wait_until((tmp_path / "pid").exists, daemon)
            connect(tmp_path / "inherited")
            daemon.terminate()
            assert daemon.wait(PATIENCE) == 0
    assert (tmp_path / "inherited").exists()


def test_the_user_at_a_terminal_is_told_how_to_connect(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(*LISTEN), cwd=tmp_path, env=environment(), stdin=subprocess.DEVNULL, stderr=theirs
    )
    try:
        os.close(theirs)
        said = os.read(ours, 4096).decode()
    finally:
        process.terminate()
        process.wait(PATIENCE)
        os.close(ours)
    assert f"-chardev socket,id=e,path={tmp_path}/v.sock" in said
    assert "-device vhost-user-blk-pci,chardev=e,num-queues=1" in said
    assert "-object memory-backend-memfd,id=mem,size=1G,share=on" in said


def test_front_ends_take_descriptors_up_to_the_hard_limit(tmp_path: Path) -> None:
    count = 40
    exports: list[str] = []
    for number in range(count):
        address = f"addr.type=unix,addr.path={number}.sock"
        exports += ["--export", f"vhost-user-blk,id=e{number},node-name=n,{address}"]
    limited = ("sh", "-c", 'ulimit -S -n 64; exec "$0" "$@"')
    with (
        running(*NODE, *exports, cwd=tmp_path, wrapper=limited) as daemon,
        ExitStack() as stack,
    ):
        wait_for_socket(daemon, f"{count - 1}.sock")
        for number in range(count):
            connection = stack.enter_context(Connection.connect(tmp_path / f"{number}.sock"))
            connection.sync()


def test_start_up_loads_no_numpy(tmp_path: Path) -> None:
    with running(*LISTEN, "--pidfile", "pid", cwd=tmp_path) as daemon:
        wait_until((tmp_path / "pid").exists, daemon)
        assert "numpy" not in Path(f"/proc/{daemon.pid}/maps").read_text()


def test_start_up_loads_no_numpy_for_qcow2(tmp_path: Path) -> None:
    geometry = Geometry(
        version=3, cluster_bits=16, refcount_order=4, extended_l2=False, external_data=False
    )
    image = Header(geometry, 1 << 30, 3 << 16, 2, reftable_offset=1 << 16, reftable_clusters=1)
    with (tmp_path / "disk.img").open("wb") as file:
        file.write(encode(image))
        file.truncate(4 << 16)
    node = ("--blockdev", "qcow2,node-name=d,file.driver=file,file.filename=disk.img")
    export = "vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path=v.sock"
    with running(*node, "--export", export, "--pidfile", "pid", cwd=tmp_path) as daemon:
        wait_until((tmp_path / "pid").exists, daemon)
        assert "numpy" not in Path(f"/proc/{daemon.pid}/maps").read_text()

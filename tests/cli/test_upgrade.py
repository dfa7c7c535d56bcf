# SPDX-License-Identifier: Apache-2.0
"""The files of vhostblk and of what it imports disappear under a running daemon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.process import PATIENCE, ROOT, command, environment, wait_until
from tests.frontend.blk import BlkDriver
from tests.frontend.connection import Connection
from tests.frontend.memory import MIB, Memory

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What a daemon imports that is not Python's own.
PACKAGES = ("vhostblk", "numpy", "numpy.libs", "msgspec", "cffi", "_cffi_backend*", "qemu")

TRACE = ("--trace", "modules_loaded,file=trace.log")

EXPORT = {"type": "vhost-user-blk", "node-name": "q", "writable": True, "num-queues": 2}

NULL = {"driver": "null-co"}
NODES: dict[str, dict[str, Any]] = {
    "raw": {"file": {"driver": "null-aio"}},
    "copy-on-read": {"file": NULL},
    "compress": {"file": "q"},
    "throttle": {"file": NULL, "throttle-group": "g"},
    "preallocate": {"file": NULL},
    "blkdebug": {"image": NULL},
    "blkverify": {"test": NULL, "raw": NULL},
    "quorum": {"children": [NULL], "vote-threshold": 1},
    "copy-before-write": {"file": NULL, "target": NULL},
}


def install(site: Path) -> None:
    """Copy the packages into a directory, as an installation has them."""
    site.mkdir()
    import numpy

    installed = Path(numpy.__file__).parents[1]
    for pattern in PACKAGES:
        for source in (ROOT if pattern == "vhostblk" else installed).glob(pattern):
            if source.is_dir():
                shutil.copytree(source, site / source.name, copy_function=_link)
            else:
                shutil.copy(source, site)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


class Daemon:
    """A daemon with files of its own, and a QMP client of it."""

    def __init__(self, directory: Path, *options: str, private: bool = False) -> None:
        """Start; where the files are `private`, only root can read them."""
        self.directory = directory
        self.site = directory / "site"
        install(self.site)
        if private:
            self.site.chmod(0o700)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(directory / "notify"))
            (directory / "notify").chmod(0o777)  # as systemd does
            manager.settimeout(PATIENCE)
            self.process = subprocess.Popen(
                # Without `site`, the packages of this interpreter are out of reach.
                [sys._base_executable, "-S", "-m", "vhostblk", *TRACE, *options],  # type: ignore[attr-defined]
                cwd=directory,
                env={
                    **os.environ,
                    "PYTHONPATH": str(self.site),
                    "NOTIFY_SOCKET": str(directory / "notify"),
                },
                stderr=subprocess.PIPE,
                text=True,
            )
            assert b"READY=1" in manager.recv(100)

    def upgrade(self) -> None:
        """Remove the files, as soon as the thread that imports them has ended."""
        log = self.directory / "trace.log"
        wait_until(lambda: "modules_loaded" in log.read_text(), self.process)
        shutil.rmtree(self.site)

    @contextmanager
    def monitor(self) -> Iterator[Monitor]:
        """Speak QMP."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self.directory / "q.sock"))
            yield Monitor(connection)

    def end(self) -> str:
        """Stop the daemon, and return what it has said."""
        self.process.send_signal(signal.SIGTERM)
        said: str = self.process.communicate(timeout=PATIENCE)[1]
        assert self.process.returncode == 0, said
        return said


class Monitor:
    """A QMP client that only counts what must not happen."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")
        assert b"QMP" in self._lines.readline()
        self.run("qmp_capabilities")

    def run(self, command: str, /, **arguments: Any) -> Any:
        """Run a command that must succeed."""
        answer = self.ask(command, **arguments)
        assert "return" in answer, (command, answer)
        return answer["return"]

    def ask(self, command: str, /, **arguments: Any) -> Any:
        """Run a command."""
        options = {key.replace("_", "-"): value for key, value in arguments.items()}
        self._connection.sendall(json.dumps({"execute": command, "arguments": options}).encode())
        while True:
            answer = json.loads(self._lines.readline())
            if "event" not in answer:
                return answer


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Start a daemon with a monitor."""
    monitor = ("--chardev", "socket,id=m,path=q.sock,server=on,wait=off", "--monitor", "m")
    running = Daemon(tmp_path, *monitor, "--handover", "handover.sock")
    yield running
    running.process.kill()
    running.process.communicate()


def use(daemon: Daemon, monitor: Monitor) -> None:
    """Do what makes a daemon import modules."""
    monitor.run("object-add", qom_type="iothread", id="t")
    monitor.run("object-add", qom_type="throttle-group", id="g", limits={"iops-total": 1000})
    create = {"driver": "file", "filename": "disk.qcow2", "size": 0}
    monitor.run("blockdev-create", job_id="c", options=create)
    wait_until(lambda: monitor.run("query-jobs")[0]["status"] == "concluded")
    monitor.run("job-dismiss", id="c")
    monitor.run("blockdev-add", driver="file", filename="disk.qcow2", node_name="f")
    create = {"driver": "qcow2", "file": "f", "size": 8 * MIB}
    monitor.run("blockdev-create", job_id="c", options=create)
    wait_until(lambda: monitor.run("query-jobs")[0]["status"] == "concluded")
    assert "error" not in monitor.run("query-jobs")[0]
    monitor.run("job-dismiss", id="c")
    monitor.run("blockdev-add", driver="qcow2", file="f", node_name="q")
    monitor.run("block-dirty-bitmap-add", node="q", name="b", persistent=True)
    monitor.run("blockdev-snapshot-internal-sync", device="q", name="s")
    for driver, options in NODES.items():
        monitor.run("blockdev-add", driver=driver, node_name=f"a-{driver}", **options)
    addr = {"type": "unix", "path": "v.sock"}
    monitor.run("block-export-add", id="e", addr=addr, iothread="t", **EXPORT)
    memory = Memory()
    with Connection.connect(daemon.directory / "v.sock", PATIENCE) as connection:
        with BlkDriver(connection, memory) as disk:
            disk.write(MIB, b"x" * 4096)
            disk.flush()
            disk.discard((2 * MIB, MIB))
            disk.write_zeroes((3 * MIB, MIB))
            assert disk.read(MIB, 4096) == b"x" * 4096
    memory.close()
    for command_name in (each["name"] for each in monitor.run("query-commands")):
        if command_name.startswith("query-"):
            monitor.ask(command_name)
    assert "error" in monitor.ask("blockdev-add", driver="no-such-driver")
    monitor.run("x-vhostblk-query-export-stats")
    daemon.process.send_signal(signal.SIGUSR1)


def test_everything_works_after_the_files_are_gone(daemon: Daemon) -> None:
    daemon.upgrade()
    with daemon.monitor() as monitor:
        use(daemon, monitor)
        for driver in NODES:
            monitor.run("blockdev-del", node_name=f"a-{driver}")
        monitor.run("blockdev-snapshot-delete-internal-sync", device="q", name="s")
    said = daemon.end()
    assert "Traceback" not in said, said
    assert "No module" not in said, said


def test_a_new_version_takes_over(daemon: Daemon, tmp_path: Path) -> None:
    memory = Memory()
    with daemon.monitor() as monitor:
        monitor.run("blockdev-add", driver="null-co", node_name="q", size=8 * MIB)
        monitor.run("block-export-add", id="e", addr={"type": "unix", "path": "v.sock"}, **EXPORT)
    with Connection.connect(tmp_path / "v.sock", PATIENCE) as connection:
        with BlkDriver(connection, memory) as disk:
            disk.write(0, bytes(512))
            daemon.upgrade()
            taker = subprocess.Popen(
                command("--takeover", "handover.sock"),
                cwd=tmp_path,
                env=environment(),
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                _, said = daemon.process.communicate(timeout=PATIENCE)
                assert daemon.process.returncode == 0, said
                assert "Traceback" not in said, said
                assert disk.read(0, 512) == bytes(512)
            finally:
                taker.kill()
                taker.communicate()
    memory.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_need_not_read_the_files() -> None:
    # Not below pytest's folder, which only its owner may enter.
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o777)
        node = ("--blockdev", "null-co,node-name=q,size=8388608")
        export = "type=vhost-user-blk,id=e,node-name=q,addr.type=unix,addr.path=v.sock"
        daemon = Daemon(directory, *node, "--export", export, "--run-as", "nobody", private=True)
        try:
            memory = Memory()
            with Connection.connect(directory / "v.sock", PATIENCE) as connection:
                with BlkDriver(connection, memory) as disk:
                    assert disk.read(0, 512) == bytes(512)
            memory.close()
            assert daemon.end() == ""
        finally:
            daemon.process.kill()
            daemon.process.communicate()

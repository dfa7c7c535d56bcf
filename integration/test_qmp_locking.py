# SPDX-License-Identifier: Apache-2.0
"""Image locks: what vhostblk does over QMP and what QEMU's programs do exclude each other."""

from __future__ import annotations

import socket
import subprocess
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import pytest
from qemu.qmp import ExecuteError

from integration.guest import image
from integration.guest.monitor import Monitor
from integration.guest.programs import qemu_program
from integration.guest.server import Program, Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: QEMU's storage daemon lets others write what it exports; vhostblk does not, unless it is told to.
pytestmark = pytest.mark.usefixtures("vhostblk_only")

#: Nodes on the image: the file alone, or the raw format on top.
FORMATS = ("file", "raw")


class Daemon:
    """A daemon with a monitor and one image, opened and exported as tests want it."""

    def __init__(self, server: Server, monitor: Monitor, disk: Path, directory: Path) -> None:
        self.server = server
        self._monitor = monitor
        self._disk = disk
        self._directory = directory

    def open(self, form: str = "file", **members: Any) -> None:
        """Open the image as node "disk"."""
        wire = {name.replace("_", "-"): value for name, value in members.items()}
        options = {"driver": "file", "filename": str(self._disk), **wire}
        if form == "raw":
            read_only = {"read-only": True} if wire.get("read-only") else {}
            options = {"driver": "raw", "file": options, **read_only}
        self._monitor.execute("blockdev-add", {"node-name": "disk", **options})

    def export(self, *, writable: bool) -> None:
        """Export the node."""
        address = {"type": "unix", "path": str(self._directory / "v.sock")}
        members = {"type": "vhost-user-blk", "id": "e", "node-name": "disk", "addr": address}
        self._monitor.execute("block-export-add", {**members, "writable": writable})

    def withdraw_export(self) -> None:
        """Remove the export."""
        self._monitor.execute("block-export-del", {"id": "e"})
        self._monitor.wait_event("BLOCK_EXPORT_DELETED", id="e")


@pytest.fixture
def disk(directory: Path) -> Path:
    return image.create(directory / "disk.img", image.MIB)


@pytest.fixture
def daemon(program: Program, directory: Path, disk: Path) -> Iterator[Daemon]:
    near, far = socket.socketpair()
    arguments = ["--chardev", f"socket,id=qmp,fd={far.fileno()}", "--monitor", "chardev=qmp"]
    with Server(program, arguments, directory, pass_fds=(far.fileno(),)) as server:
        far.close()
        monitor = Monitor(near)
        try:
            yield Daemon(server, monitor, disk, directory)
        finally:
            monitor.close()


def qemu_io(disk: Path, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run one command of qemu-io."""
    return subprocess.run(
        [*qemu_program("qemu-io"), "-f", "raw", *options, "-c", command, str(disk)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def qemu_img(disk: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of qemu-img."""
    return subprocess.run(
        [*qemu_program("qemu-img"), command, "-f", "raw", str(disk), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@contextmanager
def held(command: list[str], question: str, answer: str) -> Iterator[None]:
    """Run a program that keeps the image open; the block begins once it answers the question."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdin is not None
    process.stdin.write(question)
    process.stdin.flush()
    try:
        _read_until(process.stdout, answer)
        yield
    finally:
        process.kill()
        process.communicate()


def _read_until(stream: IO[str] | None, words: str) -> None:
    assert stream is not None
    said = ""
    while words not in said:
        character = stream.read(1)
        assert character, said
        said += character


def held_by_qemu_io(disk: Path, *options: str) -> Any:
    """Have qemu-io keep the image open."""
    return held([*qemu_program("qemu-io"), "-f", "raw", *options, str(disk)], "length\n", "1 MiB")


def held_by_machine(disk: Path) -> Any:
    """Have a virtual machine keep the image open for writing."""
    drive = f"if=none,id=d,format=raw,file={disk}"
    command = ["qemu-system-x86_64", "-S", "-nodefaults", "-no-user-config", "-display", "none"]
    command += ["-drive", drive, "-device", "virtio-blk-pci,drive=d", "-qmp", "stdio"]
    # The greeting comes before the devices; the answer comes after them.
    return held(command, '{"execute": "qmp_capabilities"}\n', '"return"')


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_exported_writable_nobody_else_writes(
    daemon: Daemon, disk: Path, form: str
) -> None:
    daemon.open(form)
    daemon.export(writable=True)
    for refused in (qemu_io(disk, "write 0 512"), qemu_img(disk, "resize", "2M")):
        assert refused.returncode
        assert "lock" in refused.stderr
    assert not qemu_img(disk, "info").returncode
    assert not qemu_io(disk, "read 0 512", "-r").returncode
    assert not qemu_io(disk, "read 0 512", "-r", "-U").returncode
    with pytest.raises(AssertionError, match="lock"):
        with held_by_machine(disk):
            pass
    daemon.withdraw_export()
    assert not qemu_io(disk, "write 0 512").returncode


@pytest.mark.parametrize("form", FORMATS)
def test_what_others_write_is_not_exported_writable(daemon: Daemon, disk: Path, form: str) -> None:
    daemon.open(form)
    for holder in (held_by_qemu_io, held_by_machine):
        with holder(disk):
            with pytest.raises(ExecuteError, match=r'Failed to get .*"write" lock'):
                daemon.export(writable=True)
            daemon.export(writable=False)  # reading along harms nobody
            daemon.withdraw_export()
        daemon.export(writable=True)
        daemon.withdraw_export()


def test_who_reads_lets_others_read_and_write(daemon: Daemon, disk: Path) -> None:
    daemon.open("raw", read_only=True)
    daemon.export(writable=False)
    assert not qemu_img(disk, "info").returncode
    assert not qemu_io(disk, "read 0 512", "-r").returncode
    assert not qemu_io(disk, "write 0 512").returncode


def test_force_share_reads_what_others_write(daemon: Daemon, disk: Path) -> None:
    with pytest.raises(ExecuteError, match="force-share=on can only be used with read-only images"):
        daemon.open(force_share=True)
    with held_by_qemu_io(disk):
        daemon.open(force_share=True, read_only=True)
        daemon.export(writable=False)
    assert not qemu_io(disk, "write 0 512").returncode


def test_without_locking_anything_goes(daemon: Daemon, disk: Path) -> None:
    with held_by_qemu_io(disk):
        daemon.open("raw", locking="off")
        daemon.export(writable=True)
    assert not locks_of(disk)
    assert not qemu_io(disk, "write 0 512").returncode


@pytest.mark.parametrize("form", FORMATS)
def test_lslocks_shows_the_locks(daemon: Daemon, disk: Path, form: str) -> None:
    daemon.open(form)
    daemon.export(writable=True)
    # QEMU's bytes: 100 and up for what is done with the image, 200 and up for what is not shared.
    assert {100, 101, 201} <= locks_of(disk)
    daemon.withdraw_export()
    assert 101 not in locks_of(disk)


def locks_of(disk: Path) -> set[int]:
    """List the bytes of the image that OFD locks are on, as lslocks shows them."""
    columns = "TYPE,INODE,START,END"
    command = ["lslocks", "--noheadings", "--raw", "--notruncate", "--output", columns]
    found = set()
    for line in subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=30
    ).stdout.splitlines():
        kind, inode, start, end = line.split()
        if kind == "OFDLCK" and int(inode) == disk.stat().st_ino:
            found |= set(range(int(start), int(end) + 1))
    return found

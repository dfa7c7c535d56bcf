# SPDX-License-Identifier: Apache-2.0
"""Runs inside the guest: SCSI disks of LIO, a helper, and a client that asks it everything.

Arguments: the helper's socket. The output is a line of JSON for each command: what was asked on
which of two disks, and the answer. Both disks are the same backing store, seen by two initiators.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 60.0
TARGETS = Path("/sys/kernel/config/target")
BACKSTORE = TARGETS / "core/fileio_0/disk"
NAMES = ("naa.5001405000000001", "naa.5001405000000002")
KEY, OTHER_KEY = 0x1122334455667788, 0x99AABBCCDDEEFF00
TYPES = (1, 3, 5, 6, 7, 8)
ALL_TYPES = 0xEA01

#: disk, operation, service action, type, parameters or allocation length
Step = tuple[int, int, int, int, bytes | int]


def make_disks() -> list[str]:
    """Have one backing store as two disks, one after the other."""
    if not TARGETS.exists():
        os.system("mount -t configfs none /sys/kernel/config")
        TARGETS.mkdir(exist_ok=True)
    Path("/run/disk.img").write_bytes(bytes(1 << 20))
    # Where LIO notes registrations with APTPL; without, each of them fails after it was made.
    Path("/var/target/pr").mkdir(parents=True, exist_ok=True)
    BACKSTORE.mkdir(parents=True)
    (BACKSTORE / "control").write_text("fd_dev_name=/run/disk.img,fd_dev_size=1048576")
    (BACKSTORE / "enable").write_text("1")
    # What tells that two disks are one, where somebody asks.
    (BACKSTORE / "wwn/vpd_unit_serial").write_text("1b8b5d2c-0000-4000-8000-000000000001")
    disks: list[str] = []
    for number, name in enumerate(NAMES):
        group = TARGETS / "loopback" / name / "tpgt_1"
        group.mkdir(parents=True)
        (group / "nexus").write_text(f"naa.500140500000001{number}")
        lun = group / "lun/lun_0"
        lun.mkdir()
        (lun / "disk").symlink_to(BACKSTORE)
        disks.append(_new_disk(disks))
    return disks


def _new_disk(known: list[str]) -> str:
    """Wait for a disk that can be opened: its names come one after the other."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for path in sorted(Path("/sys/block").glob("sd*")):
            device = f"/dev/{path.name}"
            if device not in known:
                with suppress(OSError):
                    os.close(os.open(device, os.O_RDWR))
                    return device
        time.sleep(0.02)
    raise TimeoutError("no disk")


def remove_disks() -> None:
    """Take it all away, with all reservations."""
    for name in NAMES:
        group = TARGETS / "loopback" / name / "tpgt_1"
        (group / "lun/lun_0/disk").unlink()
        (group / "lun/lun_0").rmdir()
        group.rmdir()
        group.parent.rmdir()
    BACKSTORE.rmdir()
    deadline = time.monotonic() + PATIENCE
    while _disks():
        if time.monotonic() > deadline:
            raise TimeoutError("the disks don't go")
        time.sleep(0.02)


def _disks() -> list[Path]:
    return [*Path("/sys/block").glob("sd*"), *Path("/dev").glob("sd*")]


class Client:
    """A connection to the helper."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.socket.connect(path)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        assert self.receive(4) == bytes(4)
        self.socket.sendall(bytes(4))

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            assert piece, "the helper has closed the connection"
            data += piece
        return data

    def ask(
        self, fd: int, operation: int, action: int, kind: int, rest: bytes | int
    ) -> list[object]:
        length = rest if isinstance(rest, int) else len(rest)
        cdb = struct.pack(">BBBxxxxH7x", operation, action, kind, length)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        self.socket.sendmsg([cdb], rights)
        if isinstance(rest, bytes) and rest:
            self.socket.sendall(rest)
        status, size, sense = struct.unpack(">iI96s", self.receive(104))
        data = self.receive(size)
        used = sense[: 8 + sense[7]] if status == 2 else b""
        return [status, used.hex(), data.hex()]


def parameters(key: int, service_key: int = 0, flags: int = 0, more: bytes = b"") -> bytes:
    return struct.pack(">QQ4xB3x", key, service_key, flags) + more


def steps() -> Iterator[Step]:
    """Say what is asked, in this order."""
    yield from look(0)
    for disk, key in enumerate((KEY, OTHER_KEY)):
        yield disk, 0x5F, 0, 0, parameters(0, key)  # REGISTER
        yield disk, 0x5F, 0, 0, parameters(key + 1, 5)  # with a wrong key
        yield from look(disk)
    for kind in TYPES:
        yield 0, 0x5F, 1, kind, parameters(KEY)  # RESERVE
        yield 0, 0x5F, 1, kind, parameters(KEY)  # again
        yield 1, 0x5F, 1, kind, parameters(OTHER_KEY)  # a conflict
        yield 1, 0x5F, 2, kind, parameters(OTHER_KEY)  # RELEASE of what another one has
        yield from look(1)
        yield 0, 0x5F, 2, kind % 8 + 1, parameters(KEY)  # of another type
        yield 0, 0x5F, 2, kind, parameters(KEY)
        yield from look(0)
    yield from preempt()
    yield from move()
    yield from everything()


def look(disk: int) -> Iterator[Step]:
    """Read all there is."""
    for action in range(4):
        for length in (8192, 8, 0):
            yield disk, 0x5E, action, 0, length


def preempt() -> Iterator[Step]:
    # No PREEMPT AND ABORT: LIO waits for itself then, for ever (Linux 6.1, `core_tmr_lun_reset`).
    yield 0, 0x5F, 6, 0, parameters(0, KEY)  # REGISTER AND IGNORE EXISTING KEY
    yield 0, 0x5F, 1, 5, parameters(KEY)
    yield 1, 0x5F, 4, 5, parameters(OTHER_KEY, KEY)  # PREEMPT
    yield from look(1)
    for _ in range(2):  # the first one gets the unit attention
        yield 0, 0x5F, 0, 0, parameters(0, KEY)
    yield from look(0)
    yield 1, 0x5F, 2, 5, parameters(OTHER_KEY)
    yield 1, 0x5F, 1, 1, parameters(OTHER_KEY)
    yield 0, 0x5F, 3, 0, parameters(OTHER_KEY)  # CLEAR with a wrong key
    yield 0, 0x5F, 3, 0, parameters(KEY)
    for _ in range(2):
        yield from look(1)


def move() -> Iterator[Step]:
    """REGISTER with APTPL, all ports and transport IDs; REGISTER AND MOVE."""
    for disk, key in enumerate((KEY, OTHER_KEY)):
        yield disk, 0x5F, 6, 0, parameters(0, key)
    identifier = bytes([6, 0, 0, 0, *bytes.fromhex("5001405000000011"), *bytes(12)])
    listed = struct.pack(">I", len(identifier)) + identifier
    yield 0, 0x5F, 0, 0, parameters(KEY, KEY, 4)
    yield 0, 0x5F, 0, 0, parameters(KEY, KEY, 8, listed)
    yield 0, 0x5F, 0, 0, parameters(KEY, KEY, 8, listed[:-1])
    yield 0, 0x5F, 1, 1, parameters(KEY)
    moved = struct.pack(">QQxBHI", KEY, OTHER_KEY, 0, 1, len(identifier)) + identifier
    yield 0, 0x5F, 7, 1, moved
    yield from look(1)
    yield 1, 0x5F, 3, 0, parameters(OTHER_KEY)
    yield 0, 0x5F, 3, 0, parameters(KEY)
    yield from look(0)


def everything() -> Iterator[Step]:
    """All service actions, and lists of all lengths."""
    for action in range(4, 32):
        yield 0, 0x5E, action, 0, 8192
    for action in range(8, 32):
        yield 0, 0x5F, action, 0, parameters(KEY)
    for length in (0, 1, 23, 25, 28, 100, 8192):
        yield 0, 0x5F, 0, 0, parameters(0, KEY).ljust(8192, b"\0")[:length]


def main() -> None:
    """Ask everything."""
    disks = make_disks()
    opened = [os.open(disk, os.O_RDWR) for disk in disks]
    reading = os.open(disks[0], os.O_RDONLY)
    client = Client(sys.argv[1])
    for disk, operation, action, kind, rest in steps():
        said = client.ask(opened[disk], operation, action, kind, rest)
        written = rest.hex() if isinstance(rest, bytes) else rest
        print(json.dumps([disk, operation, action, kind, written, said]))
    print(json.dumps(["for reading", 0x5E, client.ask(reading, 0x5E, 0, 0, 8192)]))
    print(json.dumps(["for reading", 0x5F, client.ask(reading, 0x5F, 0, 0, parameters(0, KEY))]))
    for fd in (*opened, reading):
        os.close(fd)
    remove_disks()


if __name__ == "__main__":
    main()

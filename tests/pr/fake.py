# SPDX-License-Identifier: Apache-2.0
"""Devices for helpers into which `fake_sg.c` is loaded: files that say how SG_IO is answered."""

from __future__ import annotations

import os
import struct
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).with_name("fake_sg.c")
#: `struct answer` and `struct asked` of `fake_sg.c`.
_ANSWER = struct.Struct("=8siIBBHHHiI96s8192s")
_ASKED = struct.Struct("=iiIIIIII16s8192s")
_MAGIC = b"SGFAKE\0\0"
DATA = bytes(number % 251 for number in range(8192))


class Asked(NamedTuple):
    """What a helper has asked the device."""

    interface: int
    direction: int
    cdb_length: int
    sense_length: int
    data_length: int
    timeout: int
    flags: int
    vectors: int
    cdb: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class Result:
    """What becomes of SG_IO; `error` is an errno, `major` the device's number.

    A command takes so many `milliseconds`, or until the file has another answer.
    """

    error: int = 0
    status: int = 0
    host: int = 0
    driver: int = 0
    sense: bytes = b""
    residue: int = 0
    data: bytes = DATA
    milliseconds: int = 0
    major: int = 8

    def encode(self) -> bytes:
        """Return the content of the file."""
        return _ANSWER.pack(
            _MAGIC, self.error, self.milliseconds, self.status, self.major, self.host, self.driver,
            len(self.sense), self.residue, len(self.data), self.sense, self.data,
        )  # fmt: skip


def build(directory: Path) -> Path:
    """Compile the library."""
    library = directory / "fake_sg.so"
    words = ["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*words, "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


@contextmanager
def device(result: Result | None = None, flags: int = os.O_RDWR) -> Iterator[int]:
    """Have a descriptor of such a file."""
    file = os.memfd_create("device")
    try:
        os.write(file, (result or Result()).encode())
        os.ftruncate(file, _ANSWER.size + _ASKED.size)
        opened = os.open(f"/proc/self/fd/{file}", flags | os.O_CLOEXEC)
        try:
            yield opened
        finally:
            os.close(opened)
    finally:
        os.close(file)


def change(fd: int, result: Result) -> None:
    """Have a device answer otherwise from now on."""
    os.pwrite(fd, result.encode(), 0)


def asked(fd: int) -> Asked:
    """Return what was asked last."""
    # Opened anew: `fd` may not be for reading.
    with Path(f"/proc/self/fd/{fd}").open("rb") as file:
        file.seek(_ANSWER.size)
        return Asked(*_ASKED.unpack(file.read(_ASKED.size)))

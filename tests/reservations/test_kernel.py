# SPDX-License-Identifier: Apache-2.0
"""The kernel's ioctls: their numbers and structures, and what their results become."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from vhostblk.reservations import codec, kernel
from vhostblk.reservations.kernel import KernelManager
from vhostblk.reservations.wire import Reply
from vhostblk.schema.reservations import PrInAction, PrOutAction, PrType

if TYPE_CHECKING:
    from pathlib import Path

KEY, OTHER = 0x1122334455667788, 0x99AABBCCDDEEFF00
RESERVED = PrType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY


class Kernel:
    """Stands in for ioctl(2)."""

    def __init__(self, result: int | OSError = 0, answer: bytes = b"") -> None:
        self.result = result
        self.answer = answer
        self.keys: list[int] = []
        self.asked: list[tuple[int, bytes]] = []

    def ioctl(self, fd: int, request: int, memory: bytearray) -> int:
        self.asked.append((request, bytes(memory)))
        if isinstance(self.result, OSError):
            raise self.result
        if request == kernel.IOC_PR_READ_KEYS:
            _, room, address = struct.unpack("=IIQ", memory)
            for number, key in enumerate(self.keys[:room]):
                ctypes.c_uint64.from_address(address + 8 * number).value = key
        memory[: len(self.answer)] = self.answer
        return self.result

    def change(self, action: PrOutAction, **fields: bool) -> Reply:
        command = codec.command_out(action, KEY, OTHER, RESERVED, **fields)
        return KernelManager(self.ioctl).execute(5, *command)

    def read(self, action: PrInAction) -> Reply:
        return KernelManager(self.ioctl).execute(5, codec.command_in(action), b"")


def test_numbers_are_those_of_the_header(tmp_path: Path) -> None:
    names = [name for name in vars(kernel) if name.startswith("IOC_PR_") and "READ" not in name]
    assert len(names) == 6
    lines = "".join(f'printf("{name} %u\\n", (unsigned){name});' for name in names)
    source = tmp_path / "numbers.c"
    source.write_text(
        "#include <linux/ioctl.h>\n#include <linux/pr.h>\n#include <stdio.h>\n"
        f"int main(void) {{ {lines} return 0; }}\n"
    )
    subprocess.run(["cc", "-o", tmp_path / "numbers", source], check=True)
    done = subprocess.run([tmp_path / "numbers"], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        name, number = line.split()
        assert getattr(kernel, name) == int(number), name


@pytest.mark.parametrize(
    ("action", "request_", "memory"),
    [
        (PrOutAction.REGISTER, kernel.IOC_PR_REGISTER, struct.pack("=QQII", KEY, OTHER, 0, 0)),
        (
            PrOutAction.REGISTER_AND_IGNORE_EXISTING_KEY,
            kernel.IOC_PR_REGISTER,
            struct.pack("=QQII", 0, OTHER, 1, 0),
        ),
        (PrOutAction.RESERVE, kernel.IOC_PR_RESERVE, struct.pack("=QII", KEY, 3, 0)),
        (PrOutAction.RELEASE, kernel.IOC_PR_RELEASE, struct.pack("=QII", KEY, 3, 0)),
        (PrOutAction.CLEAR, kernel.IOC_PR_CLEAR, struct.pack("=QII", KEY, 0, 0)),
        (PrOutAction.PREEMPT, kernel.IOC_PR_PREEMPT, struct.pack("=QQII", KEY, OTHER, 3, 0)),
        (
            PrOutAction.PREEMPT_AND_ABORT,
            kernel.IOC_PR_PREEMPT_ABORT,
            struct.pack("=QQII", KEY, OTHER, 3, 0),
        ),
    ],
)
def test_changes(action: PrOutAction, request_: int, memory: bytes) -> None:
    system = Kernel()
    assert system.change(action, aptpl=True) == Reply(0)
    assert system.asked == [(request_, memory)]


def test_all_types() -> None:
    assert list(kernel.KERNEL_TYPES) == list(codec.TYPE_CODES.values())
    assert list(kernel.KERNEL_TYPES.values()) == [1, 2, 3, 4, 5, 6]


def test_keys() -> None:
    system = Kernel(answer=struct.pack("=II", 7, 2))
    system.keys = [KEY, OTHER]
    status = codec.decode_in(PrInAction.READ_KEYS, system.read(PrInAction.READ_KEYS).data)
    assert (status.generation, status.keys) == (7, [KEY, OTHER])


def test_more_keys_than_there_is_room_for() -> None:
    system = Kernel(answer=struct.pack("=II", 7, 5000))
    system.keys = [KEY] * 5000
    reply = system.read(PrInAction.READ_KEYS)
    assert len(reply.data) == 8192
    with pytest.raises(codec.DataError, match="the device has 5000 keys, and 1023 fit"):
        codec.decode_in(PrInAction.READ_KEYS, reply.data)


@pytest.mark.parametrize("kind", range(7))
def test_a_reservation(kind: int) -> None:
    system = Kernel(answer=struct.pack("=QII", KEY, 7, kind))
    reply = system.read(PrInAction.READ_RESERVATION)
    found = codec.decode_in(PrInAction.READ_RESERVATION, reply.data)
    assert found.generation == 7
    if kind:
        assert (found.reservation.key, found.reservation.type) == (KEY, list(PrType)[kind - 1])  # type: ignore[union-attr]
    else:
        assert len(reply.data) == 8


@pytest.mark.parametrize("action", [PrInAction.REPORT_CAPABILITIES, PrInAction.READ_FULL_STATUS])
def test_what_the_kernel_does_not_tell(action: PrInAction) -> None:
    system = Kernel()
    reply = system.read(action)
    assert codec.describe_failure(reply) == "check condition, sense 5/24/00"
    assert not system.asked


def test_other_flags_are_refused() -> None:
    system = Kernel()
    reply = system.change(PrOutAction.REGISTER, all_target_ports=True)
    assert codec.describe_failure(reply) == "check condition, sense 5/26/00"
    assert not system.asked


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (0x18, "reservation conflict"),
        (0x2, "check condition, sense b/00/06"),
        (0xE0000, "check condition, sense b/00/06"),
        (OSError(errno.EOPNOTSUPP, ""), "check condition, sense 5/20/00"),
        (OSError(errno.ENOTTY, ""), "check condition, sense 5/20/00"),
        (OSError(errno.EINVAL, ""), "check condition, sense 5/24/00"),
        (OSError(errno.EPERM, ""), "check condition, sense b/00/06"),
        (OSError(errno.EBADE, ""), "reservation conflict"),
    ],
)
def test_failures(result: int | OSError, words: str) -> None:
    for system in (Kernel(result), Kernel(result)):
        assert codec.describe_failure(system.change(PrOutAction.RESERVE)) == words
        assert codec.describe_failure(system.read(PrInAction.READ_KEYS)) == words


def test_a_device_that_has_to_tell_something_first() -> None:
    """Its answer is not passed on by the kernel, but only that it refused."""
    results = [2, 2, 0]

    def ioctl(fd: int, request: int, memory: bytearray) -> int:
        return results.pop(0)

    command = codec.command_out(PrOutAction.CLEAR, KEY, 0, None)
    assert KernelManager(ioctl).execute(5, *command) == Reply(0)
    assert not results


def test_a_file_that_is_no_device() -> None:
    fd = os.memfd_create("file")
    try:
        reply = KernelManager().execute(fd, *codec.command_out(PrOutAction.CLEAR, 1, 0, None))
    finally:
        os.close(fd)
    assert codec.describe_failure(reply) == "check condition, sense 5/20/00"

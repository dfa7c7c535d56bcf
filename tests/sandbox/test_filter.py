# SPDX-License-Identifier: Apache-2.0
"""The filter of system calls, run by a model of the kernel's interpreter."""

from __future__ import annotations

import errno

import pytest

from tests.sandbox.bpf import run
from vhostblk.sandbox.layout import ARCHITECTURES, KEYCTL_READ, LAST_NUMBER
from vhostblk.sandbox.seccomp import ALWAYS, SPAWN, Argument, allowing, program

ALLOW = 0x7FFF0000
EPERM = 0x00050000 | errno.EPERM
ENOSYS = 0x00050000 | errno.ENOSYS
KILL = 0x80000000

#: CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD: what threads are made with.
THREAD = 0x10F00
SIGCHLD = 17

machines = pytest.mark.parametrize("machine", sorted(ARCHITECTURES))


@machines
@pytest.mark.parametrize("spawn", [True, False])
def test_what_is_denied(machine: str, spawn: bool) -> None:
    architecture = ARCHITECTURES[machine]
    code = program(architecture, spawn=spawn)
    for name in (*ALWAYS, *SPAWN):
        number = architecture.numbers.get(name)
        if number is not None:
            expected = ALLOW if spawn and name in SPAWN else EPERM
            assert run(code, number, architecture.audit) == expected, name


@machines
def test_all_else_is_allowed(machine: str) -> None:
    architecture = ARCHITECTURES[machine]
    code = program(architecture, spawn=False)
    numbers = architecture.numbers
    named = {numbers.get(name) for name in (*ALWAYS, *SPAWN, "clone", "clone3")}
    for number in range(LAST_NUMBER + 1):
        if number not in named:
            assert run(code, number, architecture.audit) == ALLOW, number


@machines
def test_threads_but_no_processes(machine: str) -> None:
    architecture = ARCHITECTURES[machine]
    clone, clone3 = architecture.numbers["clone"], architecture.numbers["clone3"]
    strict, open_ = program(architecture, spawn=False), program(architecture, spawn=True)
    assert run(strict, clone, architecture.audit, THREAD) == ALLOW
    assert run(strict, clone, architecture.audit, SIGCHLD) == EPERM
    assert run(strict, clone3, architecture.audit) == ENOSYS
    assert run(open_, clone, architecture.audit, SIGCHLD) == ALLOW
    assert run(open_, clone3, architecture.audit) == ALLOW


@machines
def test_input_for_a_terminal(machine: str) -> None:
    architecture = ARCHITECTURES[machine]
    code = program(architecture, spawn=True)
    ioctl = architecture.numbers["ioctl"]
    # The kernel looks at the lower half of the request only, and so must the filter.
    for request in (0x5412, 0x541C, 0x5412 | 1 << 32):
        assert run(code, ioctl, architecture.audit, 0, request) == EPERM
    assert run(code, ioctl, architecture.audit, 0, 0x5413) == ALLOW


@machines
def test_what_is_newer_than_the_table_is_missing(machine: str) -> None:
    architecture = ARCHITECTURES[machine]
    code = program(architecture, spawn=True)
    # 0x40000000: x32's numbers, another way to the same calls.
    for number in (LAST_NUMBER + 1, 0x40000000 | 59, 0xFFFFFFFF):
        assert run(code, number, architecture.audit) == ENOSYS


@machines
def test_another_architecture_ends_the_process(machine: str) -> None:
    i386 = 0x40000003
    assert run(program(ARCHITECTURES[machine], spawn=True), 11, i386) == KILL


@machines
def test_a_list_of_what_is_allowed(machine: str) -> None:
    architecture = ARCHITECTURES[machine]
    numbers = architecture.numbers
    arguments = {
        "ioctl": Argument(1, values=(0x2285, 0x5421)),
        "openat": Argument(2, clear=0o103),
        "clone": Argument(0, some=0x10000),
    }
    code = allowing(architecture, ["read", "futex", "no_such_call", "openat"], arguments)
    special = {numbers[name] for name in ("ioctl", "openat", "clone", "clone3")}
    for number in set(range(LAST_NUMBER + 1)) - special:
        expected = ALLOW if number in (numbers["read"], numbers["futex"]) else EPERM
        assert run(code, number, architecture.audit) == expected, number

    def verdict(name: str, *words: int) -> int:
        return run(code, numbers[name], architecture.audit, *words)

    assert verdict("ioctl", 0, 0x2285) == verdict("ioctl", 0, 0x5421) == ALLOW
    assert verdict("ioctl", 0, 0x5412) == EPERM
    assert verdict("openat", 0, 0, 0o2000000) == ALLOW
    for flags in (1, 2, 0o100, 0o101):
        assert verdict("openat", 0, 0, flags) == EPERM
    assert verdict("clone", THREAD) == ALLOW
    assert verdict("clone", SIGCHLD) == EPERM
    assert verdict("clone3") == ENOSYS
    assert run(code, LAST_NUMBER + 1, architecture.audit) == ENOSYS
    assert run(code, numbers["read"], 0x40000003) == KILL


@machines
def test_keys_can_be_read_where_an_object_may_want_to(machine: str) -> None:
    architecture = ARCHITECTURES[machine]
    numbers = architecture.numbers
    code = program(architecture, spawn=False, keyring=True)
    assert run(code, numbers["keyctl"], architecture.audit, KEYCTL_READ) == ALLOW
    for other in (0, 1, 3, 9, 10, 12, 0xFFFFFFFF):
        assert run(code, numbers["keyctl"], architecture.audit, other) == EPERM, other
    for name in set(ALWAYS) - {"keyctl"}:
        if name in numbers:
            assert run(code, numbers[name], architecture.audit) == EPERM, name

# SPDX-License-Identifier: Apache-2.0
"""The filter of system calls: calls that a storage daemon never needs fail with EPERM.

The filter has a list of denied calls. Calls that are newer than the table fail with ENOSYS, as on
the kernel of the table; C libraries then use older calls. A list of allowed calls would need all
calls that numpy, the C library, Python, plug-ins and their libraries may use: nearly all calls for
files, memory and sockets, because QMP may add any node. If such a list lacked a call, guests' disks
would fail on some machines. The list of dangerous calls is short and known: programs, other
processes, modules, mounts, name spaces, keys, BPF, the clock, the machine itself.

Denied calls return an error and send no signal, because libraries probe for features. A call with
the numbers of another architecture, which no library makes, kills the process.

The filter does not see opens and connects of io_uring, which can't execute, trace or mount.
Landlock restricts io_uring's access to files (`landlock.py`).

The cost: Linux 5.11 and later does not run the filter for calls that it allows by their number
alone. The check for this takes about 0.1 us for each call (`benchmarks/README.md`).
"""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import TYPE_CHECKING, NamedTuple

from vhostblk.sandbox.layout import (
    BPF_JUMP_EQUAL,
    BPF_JUMP_GREATER,
    BPF_JUMP_GREATER_OR_EQUAL,
    BPF_JUMP_SET,
    BPF_LOAD,
    BPF_RETURN,
    CLONE_THREAD,
    DATA_ARCH,
    DATA_ARGUMENTS,
    DATA_NUMBER,
    KEYCTL_READ,
    LAST_NUMBER,
    SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    SECCOMP_FILTER_FLAG_TSYNC,
    SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO,
    SECCOMP_RET_KILL_PROCESS,
    SECCOMP_SET_MODE_FILTER,
    TIOCLINUX,
    TIOCSTI,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vhostblk.sandbox.kernel import Kernel
    from vhostblk.sandbox.layout import Architecture

#: New processes and programs. `clone` is allowed for threads. A filter can't see the flags of
#: `clone3`, so it is denied, and the C library uses `clone`.
SPAWN = ("execve", "execveat", "fork", "vfork")

ALWAYS = (
    # other processes
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp"),
    *("migrate_pages", "move_pages"),
    # the kernel's own code, and code for it
    *("init_module", "finit_module", "delete_module", "create_module", "query_module"),
    *("get_kernel_syms", "kexec_load", "kexec_file_load", "bpf", "perf_event_open"),
    # file systems and name spaces
    *("mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "mount_setattr"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "unshare", "setns", "swapon", "swapoff"),
    *("quotactl", "quotactl_fd", "mknod", "mknodat", "fanotify_init"),
    # ways around the permissions of directories
    *("name_to_handle_at", "open_by_handle_at"),
    # keys
    *("add_key", "request_key", "keyctl"),
    # the machine
    *("reboot", "syslog", "acct", "vhangup", "iopl", "ioperm", "personality", "modify_ldt"),
    *("settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname"),
    "setdomainname",
    # obsolete
    *("nfsservctl", "_sysctl", "lookup_dcookie", "uselib", "ustat", "sysfs"),
)

_EPERM = SECCOMP_RET_ERRNO | errno.EPERM
_ENOSYS = SECCOMP_RET_ERRNO | errno.ENOSYS

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jt, jf, k


class _Test(NamedTuple):
    """A test that returns `verdict` if the loaded word passes."""

    jump: int
    value: int
    verdict: int
    #: Return the verdict if the word does not pass.
    unless: bool = False


def program(architecture: Architecture, *, spawn: bool, keyring: bool = False) -> bytes:
    """Return the filter, an array of `struct sock_filter`.

    `spawn`: allow starting programs; `keyring`: allow reading keys of the kernel.
    """
    numbers = architecture.numbers
    code = [
        *_checked(DATA_ARCH, [_equal(architecture.audit, SECCOMP_RET_KILL_PROCESS, unless=True)]),
        *_checked(DATA_NUMBER, [_Test(BPF_JUMP_GREATER, LAST_NUMBER, _ENOSYS)]),
    ]
    names = set(ALWAYS if spawn else (*ALWAYS, *SPAWN))
    if keyring:
        names.discard("keyctl")
        reading_only = [_equal(KEYCTL_READ, _EPERM, unless=True)]
        code += _checked_arguments(numbers["keyctl"], 0, reading_only)
    denied = sorted(numbers[name] for name in names if name in numbers)
    code += _checked(DATA_NUMBER, [_equal(number, _EPERM) for number in denied])
    terminal = [_equal(TIOCSTI, _EPERM), _equal(TIOCLINUX, _EPERM)]
    code += _checked_arguments(numbers["ioctl"], 1, terminal)
    if not spawn:
        code += _checked(DATA_NUMBER, [_equal(numbers["clone3"], _ENOSYS)])
        threads_only = [_Test(BPF_JUMP_SET, CLONE_THREAD, _EPERM, unless=True)]
        code += _checked_arguments(numbers["clone"], 0, threads_only)
    code.append((BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW))
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


class Argument(NamedTuple):
    """Conditions on one argument of an allowed call; only its lower half is checked."""

    number: int
    #: The allowed values; empty: any value.
    values: tuple[int, ...] = ()
    #: None of these bits may be set.
    clear: int = 0
    #: Any of these bits must be set.
    some: int = 0


def allowing(
    architecture: Architecture, names: Iterable[str], arguments: Mapping[str, Argument]
) -> bytes:
    """Return a filter that allows only the calls in `names`, if they meet `arguments`.

    `clone3` fails with ENOSYS, so that the C library creates threads with `clone`.
    """
    numbers = architecture.numbers
    code = [
        *_checked(DATA_ARCH, [_equal(architecture.audit, SECCOMP_RET_KILL_PROCESS, unless=True)]),
        *_checked(DATA_NUMBER, [_Test(BPF_JUMP_GREATER, LAST_NUMBER, _ENOSYS)]),
        *_checked(DATA_NUMBER, [_equal(numbers["clone3"], _ENOSYS)]),
    ]
    plain = sorted(numbers[name] for name in names if name in numbers and name not in arguments)
    code += _checked(DATA_NUMBER, [_equal(number, SECCOMP_RET_ALLOW) for number in plain])
    for name, argument in arguments.items():
        if name in numbers:
            code += _checked_arguments(numbers[name], argument.number, _tests(argument))
    code.append((BPF_RETURN, 0, 0, _EPERM))
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def _tests(argument: Argument) -> list[_Test]:
    tests = [_Test(BPF_JUMP_SET, argument.clear, _EPERM)] if argument.clear else []
    if argument.some:
        tests.append(_Test(BPF_JUMP_SET, argument.some, _EPERM, unless=True))
    if not argument.values:
        # A test that always passes: each number is 0 or more.
        return [*tests, _Test(BPF_JUMP_GREATER_OR_EQUAL, 0, SECCOMP_RET_ALLOW)]
    return [*tests, *(_equal(value, SECCOMP_RET_ALLOW) for value in argument.values)]


_Code = list[tuple[int, int, int, int]]


def _equal(value: int, verdict: int, *, unless: bool = False) -> _Test:
    return _Test(BPF_JUMP_EQUAL, value, verdict, unless)


def _checked(offset: int, tests: list[_Test]) -> _Code:
    """Load a word of `struct seccomp_data` and test it; continue if no test has a verdict."""
    code: _Code = [(BPF_LOAD, 0, 0, offset)]
    for test in tests:
        passed, failed = (1, 0) if test.unless else (0, 1)
        code += [(test.jump, passed, failed, test.value), (BPF_RETURN, 0, 0, test.verdict)]
    return code


def _checked_arguments(number: int, argument: int, tests: list[_Test]) -> _Code:
    """Test the lower half of an argument of one system call."""
    body = _checked(DATA_ARGUMENTS + 8 * argument, tests)
    return [(BPF_LOAD, 0, 0, DATA_NUMBER), (BPF_JUMP_EQUAL, 0, len(body), number), *body]


def install(kernel: Kernel, *, spawn: bool, keyring: bool = False) -> None:
    """Filter the calls of all threads; `no_new_privs` must be set. Raises OSError."""
    if kernel.architecture is None:
        raise OSError(errno.ENOSYS, "no filter for this architecture")
    install_program(kernel, program(kernel.architecture, spawn=spawn, keyring=keyring))


def install_program(kernel: Kernel, code: bytes) -> None:
    """Install a filter in all threads; `no_new_privs` must be set. Raises OSError."""
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: length in instructions, pointer.
    count = len(code) // _INSTRUCTION.size
    described = struct.pack("@HP", count, ctypes.addressof(buffer))
    flags = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_SPEC_ALLOW
    kernel.call("seccomp", SECCOMP_SET_MODE_FILTER, flags, described)

# SPDX-License-Identifier: Apache-2.0
"""The filter of system calls: what a storage daemon never needs fails with EPERM.

What is not denied is allowed, up to the newest call known here; newer ones fail with ENOSYS, as on
the kernel that the table was made with, and what a C library tries first it does without then.
A list of what is allowed would have to hold all that numpy, the C library, Python, plug-ins and
their libraries may ever call, nearly everything that touches files, memory and sockets, for QMP
may add any node at run time; one that is a little too short breaks a guest's disk on some other
machine. What does harm is short and known: programs, other processes, modules, mounts, name
spaces, keys, BPF, the clock, the machine itself.

The answer is an error and not a signal, because libraries probe for features. A call by another
architecture's numbers, which no library makes, ends the process.

io_uring does its opens and connects without asking the filter; it can't execute, trace or mount.
What files are concerned, Landlock holds for it too (`landlock.py`).

The cost: for a call that the filter allows by its number alone Linux (5.11 and later) runs no
filter at all. To find that out takes it about 0.1 us a call (`benchmarks/README.md`).
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

#: New processes and programs. `clone` stays for threads; of `clone3`, whose flags a filter can't
#: see, the C library then does without.
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
    # long gone
    *("nfsservctl", "_sysctl", "lookup_dcookie", "uselib", "ustat", "sysfs"),
)

_EPERM = SECCOMP_RET_ERRNO | errno.EPERM
_ENOSYS = SECCOMP_RET_ERRNO | errno.ENOSYS

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jt, jf, k


class _Test(NamedTuple):
    """Return `verdict` where the loaded word passes."""

    jump: int
    value: int
    verdict: int
    #: Return it where the word does not pass.
    unless: bool = False


def program(architecture: Architecture, *, spawn: bool, keyring: bool = False) -> bytes:
    """Return the filter, an array of `struct sock_filter`.

    `spawn`: let programs be started; `keyring`: let keys of the kernel's be read, and no more.
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
    """What one argument of an allowed call must be like: only its lower half is looked at."""

    number: int
    #: It must be one of these; empty: anything.
    values: tuple[int, ...] = ()
    #: None of these bits may be set.
    clear: int = 0
    #: Any of these bits must be set.
    some: int = 0


def allowing(
    architecture: Architecture, names: Iterable[str], arguments: Mapping[str, Argument]
) -> bytes:
    """Return a filter that allows only calls in `names`, of those in `arguments` only such.

    `clone3` fails with ENOSYS, so that the C library makes threads with `clone`.
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
        # A test that everything passes: any number is 0 or more.
        return [*tests, _Test(BPF_JUMP_GREATER_OR_EQUAL, 0, SECCOMP_RET_ALLOW)]
    return [*tests, *(_equal(value, SECCOMP_RET_ALLOW) for value in argument.values)]


_Code = list[tuple[int, int, int, int]]


def _equal(value: int, verdict: int, *, unless: bool = False) -> _Test:
    return _Test(BPF_JUMP_EQUAL, value, verdict, unless)


def _checked(offset: int, tests: list[_Test]) -> _Code:
    """Load a word of `struct seccomp_data` and test it; goes on where no test has a verdict."""
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
    """Filter the calls of all threads for good; `no_new_privs` is set. Raises OSError."""
    if kernel.architecture is None:
        raise OSError(errno.ENOSYS, "no filter for this architecture")
    install_program(kernel, program(kernel.architecture, spawn=spawn, keyring=keyring))


def install_program(kernel: Kernel, code: bytes) -> None:
    """Put a filter on all threads for good; `no_new_privs` is set. Raises OSError."""
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: length in instructions, pointer.
    count = len(code) // _INSTRUCTION.size
    described = struct.pack("@HP", count, ctypes.addressof(buffer))
    flags = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_SPEC_ALLOW
    kernel.call("seccomp", SECCOMP_SET_MODE_FILTER, flags, described)

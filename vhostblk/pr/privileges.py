# SPDX-License-Identifier: Apache-2.0
"""What the helper gives up once it listens.

It keeps CAP_SYS_RAWIO (with multipath CAP_SYS_ADMIN too), as QEMU's does; the bounding set and
supplementary groups go, and it becomes another user where the command line says so. Then come a
list of the system calls that it makes, and Landlock. QEMU's helper has neither.

With libmpathpersist the list is the daemon's: all but what does harm. Nobody knows what the library
and its plug-ins call.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from vhostblk.errors import errors_as, reason
from vhostblk.pr.errors import HelperError
from vhostblk.reservations.layout import SG_IO
from vhostblk.sandbox import capabilities, landlock, seccomp
from vhostblk.sandbox.kernel import Kernel
from vhostblk.sandbox.landlock import Rule
from vhostblk.sandbox.layout import (
    CLONE_THREAD,
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
)
from vhostblk.sandbox.seccomp import Argument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)

#: What threads, sockets, memory and time take.
CALLS = (
    *("read", "write", "writev", "pread64", "lseek", "close", "fcntl", "poll", "ppoll"),
    *("stat", "lstat", "fstat", "newfstatat", "statx", "getdents64", "readlink", "readlinkat"),
    *("unlink", "unlinkat"),
    # what going to the background ends with
    *("chdir", "dup2", "dup3"),
    *("accept4", "recvmsg", "recvfrom", "sendmsg", "sendto", "shutdown"),
    *("getsockopt", "setsockopt", "epoll_ctl", "epoll_wait", "epoll_pwait"),
    *("mmap", "mremap", "munmap", "mprotect", "madvise", "brk"),
    *("futex", "set_robust_list", "rseq", "gettid", "getpid", "tgkill", "sched_yield"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall"),
    *("clock_gettime", "clock_nanosleep", "nanosleep", "sched_getaffinity", "getrandom"),
    *("exit", "exit_group"),
)
_FIONBIO = 0x5421
_FIOCLEX = 0x5451
_TCGETS = 0x5401
#: Files are opened for reading: device mapper's names, and Python's modules.
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
ARGUMENTS = {
    "ioctl": Argument(1, values=(SG_IO, _FIONBIO, _FIOCLEX, _TCGETS)),
    "open": Argument(1, clear=_WRITING),
    "openat": Argument(2, clear=_WRITING),
    "clone": Argument(0, some=CLONE_THREAD),
}


class Identity(NamedTuple):
    """Whom to become; None: no change."""

    user: int | None = None
    group: int | None = None


def drop(
    identity: Identity, made: Iterable[str], *, multipath: bool, kernel: Kernel | None = None
) -> None:
    """Give up what is not needed; call before threads start. Raises HelperError.

    `made` are files that are removed at the end.
    """
    kernel = kernel or Kernel()
    with errors_as(HelperError, "Failed to drop privileges"):
        _drop_capabilities(kernel, identity, multipath)
    _attempt("no_new_privs", lambda: kernel.call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if multipath:
        _attempt("seccomp", lambda: seccomp.install(kernel, spawn=False))
        return
    rules = list(_rules(made))
    _attempt("Landlock", lambda: landlock.restrict(kernel, rules))
    if kernel.architecture is None:
        logger.info("no seccomp: unknown architecture")
        return
    code = seccomp.allowing(kernel.architecture, CALLS, ARGUMENTS)
    _attempt("seccomp", lambda: seccomp.install_program(kernel, code))


def _drop_capabilities(kernel: Kernel, identity: Identity, multipath: bool) -> None:
    kept = capabilities.RAW_IO | capabilities.DEVICE_MAPPER if multipath else capabilities.RAW_IO
    if capabilities.permitted(kernel) or identity != Identity():
        capabilities.drop_bounds(kernel)
        kernel.call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
        user = os.getuid() if identity.user is None else identity.user
        group = os.getgid() if identity.group is None else identity.group
        if os.getgroups():
            os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
        kernel.call("prctl", PR_SET_KEEPCAPS, 0, 0, 0, 0)
    if capabilities.make_effective(kernel, kept) != sum(1 << each for each in kept):
        names = "CAP_SYS_RAWIO and CAP_SYS_ADMIN" if multipath else "CAP_SYS_RAWIO"
        logger.warning("without %s most commands will fail", names)


def _attempt(what: str, action: Callable[[], object]) -> None:
    try:
        action()
    except OSError as error:
        logger.info("no %s: %s", what, reason(error))


def _rules(made: Iterable[str]) -> Iterable[Rule]:
    """Say which files may be opened or removed."""
    for path in {sys.prefix, sys.base_prefix, *filter(None, sys.path), "/sys"}:
        yield Rule(path, landlock.READ)
    for directory in {os.path.dirname(os.path.abspath(path)) for path in made}:  # noqa: PTH100, PTH120
        yield Rule(directory, landlock.REMOVE)

# SPDX-License-Identifier: Apache-2.0
"""The sandbox of the daemon's process, in two steps.

`enter` is called before any file is opened, while there is one thread. It forbids new privileges,
drops all capabilities except those for opening images and sockets, and installs the filter of
system calls. These restrictions don't affect QMP commands, so they are always used.

`close_files` is called when all files that the command line names are open. It changes the user and
uses Landlock. Landlock restricts QMP, whose clients may add nodes with any path. So it is used only
if there is neither a monitor nor a plug-in that opens files, or if the user names the directories
in which files may be opened.

Restrictions that the kernel does not support are logged. They are errors only if the user has asked
for them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from vhostblk.block.registry import is_built_in
from vhostblk.errors import reason
from vhostblk.sandbox import capabilities, landlock, seccomp
from vhostblk.sandbox.errors import SandboxError
from vhostblk.sandbox.kernel import Kernel
from vhostblk.sandbox.landlock import Rule
from vhostblk.sandbox.layout import PR_SET_NO_NEW_PRIVS
from vhostblk.schema.base import UNSET
from vhostblk.schema.sandbox import SandboxAction, SandboxFiles, SandboxOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import ThreadPoolExecutor

    from vhostblk.daemon import Daemon
    from vhostblk.sandbox.identity import Identity

logger = logging.getLogger(__name__)

#: Files that modules, the C library and the engine read later.
_SYSTEM = (
    *("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/etc/passwd", "/etc/group"),
    *("/etc/nsswitch.conf", "/etc/hosts", "/etc/resolv.conf", "/etc/host.conf", "/etc/gai.conf"),
    *("/etc/gnutls", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys"),
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_ENDING_SECONDS = 0.1


class Sandbox:
    """The restrictions of this process."""

    def __init__(
        self,
        options: SandboxOptions | None,
        identity: Identity | None = None,
        *,
        monitored: bool,
        keyring: bool = False,
        kernel: Kernel | None = None,
    ) -> None:
        """`options` are None if the user gave none; `monitored`: QMP may open files.

        `keyring`: objects may read the kernel's keys.
        """
        self._asked = options is not None
        self._options = options or SandboxOptions()
        self._identity = identity
        self._keyring = keyring
        self._kernel = kernel or Kernel()
        self._executor: ThreadPoolExecutor | None = None
        directories = self._options.directory
        self._directories = [] if directories is UNSET else list(directories)
        files = self._options.files
        if files is SandboxFiles.AUTO:
            closed = bool(self._directories) or not monitored
            files = SandboxFiles.DENY if closed else SandboxFiles.ALLOW
        self._closes_files = self._options.enable and files is SandboxFiles.DENY
        self._files_asked = self._options.files is SandboxFiles.DENY or bool(self._directories)

    def enter(self) -> None:
        """Apply the restrictions that don't depend on open files; raises SandboxError."""
        for directory in self._directories:
            if not Path(directory).is_dir():
                raise SandboxError(f"directory={directory}: no such directory")
        if not self._options.enable:
            logger.info("sandbox: off; programs can be started, and all capabilities are kept")
            return
        kept = capabilities.FILES | capabilities.MEMORY | capabilities.NETWORK
        if self._identity is not None:
            kept |= capabilities.IDENTITY
        spawn = self._options.spawn is SandboxAction.ALLOW
        kernel = self._kernel
        self._attempt("no_new_privs", lambda: kernel.call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        self._attempt("capabilities", lambda: capabilities.keep_only(kernel, kept))
        self._attempt(
            "seccomp", lambda: seccomp.install(kernel, spawn=spawn, keyring=self._keyring)
        )
        if spawn:
            logger.info("sandbox: programs can be started (spawn=allow)")

    def _attempt(self, what: str, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            level = logging.WARNING if self._asked else logging.INFO
            logger.log(level, "sandbox: %s is not available: %s", what, reason(error))

    def prepare_loop(self) -> None:
        """Prepare for restricting all threads: make the loop's thread pool replaceable."""
        if self._closes_files:
            self._replace_pool()

    def close_files(self, daemon: Daemon, made: Iterable[str] = ()) -> None:
        """Change the user, and restrict the files that can be opened; raises SandboxError.

        `made` are files to be removed at the end, besides those of the daemon.
        """
        why = "a monitor may ask for it"
        if self._closes_files and not self._files_asked and (name := _plugin(daemon)) is not None:
            self._closes_files = False
            why = f"node '{name}' is a plug-in's, which may open any file"
        rules = list(_rules(daemon, made, self._directories)) if self._closes_files else []
        if self._identity is not None:
            from vhostblk.sandbox.identity import become

            become(self._identity)
        if not self._closes_files:
            if self._options.enable:
                logger.info("sandbox: any file can be opened: %s", why)
            return
        self._replace_pool()
        try:
            version = landlock.restrict(self._kernel, rules)
        except OSError as error:
            if self._files_asked:
                raise SandboxError(f"Landlock is not available: {reason(error)}") from error
            level = logging.WARNING if self._asked else logging.INFO
            logger.log(level, "sandbox: any file can be opened: no Landlock: %s", reason(error))
            return
        others = _older_threads()
        logger.info("sandbox: Landlock %d, %d rules", version, len(rules))
        if others:
            logger.info("sandbox: %d threads are not restricted: %s", len(others), others)

    def _replace_pool(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        former, self._executor = self._executor, ThreadPoolExecutor(thread_name_prefix="asyncio")
        asyncio.get_running_loop().set_default_executor(self._executor)
        if former is not None:
            former.shutdown()


def _plugin(daemon: Daemon) -> str | None:
    """Return the name of a node whose driver is not built in."""
    return next((node.node_name for node in daemon.graph if not is_built_in(node.driver)), None)


def _older_threads() -> list[str]:
    """Return the other threads; wait for the kernel to remove threads that have just ended."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while (names := _other_threads()) and time.monotonic() < deadline:
        time.sleep(0.001)
    return names


def _other_threads() -> list[str]:
    """Return the other threads, without the kernel's workers for io_uring."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        if task.name == str(os.getpid()):
            continue
        with suppress(OSError):  # it has ended
            name = (task / "comm").read_text().strip()
            if not name.startswith("iou-"):
                names.append(name)
    return names


def _rules(daemon: Daemon, others: Iterable[str], directories: Iterable[str]) -> Iterator[Rule]:
    """Return the rules for files that may be opened later."""
    paths = {sys.prefix, sys.base_prefix, *_SYSTEM, *filter(None, sys.path), *_package_paths()}
    for path in paths:
        yield Rule(path, landlock.READ)
    for path in _DEVICES:
        yield Rule(path, landlock.WRITE)
    for directory in directories:
        yield Rule(directory, landlock.MANAGE)
    for path in _named_files(daemon):
        yield Rule(path, landlock.MANAGE if Path(path).is_dir() else landlock.WRITE)
    for found in daemon.objects.values():
        for path in found.files:
            yield Rule(path, landlock.READ)
    listeners = [listener for device in daemon.chardevs for listener in device.listeners]
    made = [listener.path for listener in listeners if listener.path is not None]
    for export in daemon.exports.values():
        made += export.made_files
    for directory in {str(Path(path).absolute().parent) for path in (*made, *others)}:
        yield Rule(directory, landlock.REMOVE)


def _package_paths() -> set[str]:
    """Return the directories of packages; editable ones may be outside `sys.path`."""
    found: set[str] = set()
    for name, module in list(sys.modules.items()):
        if "." not in name:
            found.update(getattr(module, "__path__", ()))
    return {path for path in found if Path(path).is_absolute()}


def _named_files(daemon: Daemon) -> set[str]:
    """Return the files that nodes' options name; drivers may open them again."""
    found = set()
    for node in daemon.graph:
        options: Any = node.options
        for value in asdict(options).values():
            if isinstance(value, str) and "\0" not in value and os.path.lexists(value):
                found.add(value)
    return found

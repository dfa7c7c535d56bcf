# SPDX-License-Identifier: Apache-2.0
"""Run as a program: enters the sandbox, tries what it denies, and tells what came of that, as JSON.

Arguments: the sandbox's options (empty: none), the directory with `named.img` (the image that the
graph names) and `other.img`, and system calls that this "kernel" doesn't have, or "plugin": the
graph has a plug-in's node, too, or "hook": a package was imported that is not on `sys.path`.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import importlib.util
import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from vhostblk.daemon import Daemon
from vhostblk.sandbox.apply import Sandbox
from vhostblk.sandbox.errors import SandboxError
from vhostblk.sandbox.kernel import Kernel
from vhostblk.sandbox.layout import ARCHITECTURES
from vhostblk.schema import plugins
from vhostblk.schema.options import sandbox_options

if TYPE_CHECKING:
    from collections.abc import Callable


class LackingKernel(Kernel):
    """One without some system calls."""

    def __init__(self, missing: list[str]) -> None:
        super().__init__()
        self._missing = missing

    def call(self, name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char]) -> int:
        if name in self._missing:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return super().call(name, *arguments)


def attempt(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def raw(name: str) -> str:
    """Call with arguments that no call takes, so that nothing happens where it isn't denied."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = ARCHITECTURES[os.uname().machine].numbers[name]
    libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
    return errno.errorcode[ctypes.get_errno()]


def fork() -> None:
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


def import_by_hook(directory: str) -> None:
    """Import `found_by_hook` as an editable installation's hook does."""
    place = f"{directory}/elsewhere/found_by_hook"
    spec = importlib.util.spec_from_file_location(
        "found_by_hook", f"{place}/__init__.py", submodule_search_locations=[place]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["found_by_hook"] = module
    spec.loader.exec_module(module)


def thread() -> None:
    started = threading.Thread(target=lambda: None)
    started.start()
    started.join()


async def main() -> dict[str, object]:
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    text, directory, *missing = sys.argv[1:]
    options = sandbox_options(text) if text else None
    sandbox = Sandbox(options, monitored=False, kernel=LackingKernel(missing))
    sandbox.enter()
    sandbox.prepare_loop()
    named, other = f"{directory}/named.img", f"{directory}/other.img"
    blockdevs = [f"file,filename={named},node-name=n"]
    if "plugin" in missing:
        from tests.plugin.support import Memory  # brings numpy, and with it threads

        plugins.register(Memory)
        blockdevs.append("test-memory,node-name=p")
    if "hook" in missing:
        import_by_hook(directory)
    async with Daemon(blockdevs=blockdevs) as daemon:
        await asyncio.to_thread(lambda: None)
        sandbox.close_files(daemon, [f"{directory}/sub/pid"])
        return {
            "exec": attempt(lambda: os.execv("/no/such/program", ["program"])),
            "fork": attempt(fork),
            "thread": attempt(thread),
            "ptrace": raw("ptrace"),
            "mount": raw("mount"),
            "bpf": raw("bpf"),
            "keyctl": raw("keyctl"),
            "named": attempt(lambda: os.close(os.open(named, os.O_RDWR))),
            "truncate": attempt(lambda: os.truncate(other, 0)),
            "other": attempt(lambda: os.close(os.open(other, os.O_RDONLY))),
            "other thread": await asyncio.to_thread(
                lambda: attempt(lambda: os.close(os.open(other, os.O_RDONLY)))
            ),
            "new": attempt(lambda: os.close(os.open(f"{directory}/new", os.O_CREAT | os.O_RDWR))),
            "allowed": attempt(
                lambda: os.close(os.open(f"{directory}/sub/new", os.O_CREAT | os.O_RDWR))
            ),
            "remove": attempt(lambda: Path(f"{directory}/sub/pid").unlink()),
            "passwords": attempt(lambda: os.close(os.open("/etc/shadow", os.O_RDONLY))),
            "signal": attempt(lambda: os.kill(os.getppid(), 0)),
            "numpy": attempt(lambda: __import__("numpy")),
            "late": attempt(lambda: __import__("found_by_hook.late"))
            if "hook" in missing
            else None,
        }


if __name__ == "__main__":
    try:
        print(json.dumps(asyncio.run(main())))
    except SandboxError as error:
        sys.exit(str(error))

# SPDX-License-Identifier: Apache-2.0
"""The engine built together with `stores.c`; used like the result of `vhostblk.engine.load()`."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cffi import FFI

from vhostblk.engine import Engine
from vhostblk.engine.build import SRC, interface_files
from vhostblk.engine.iothread import Iothread

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Sources with threads or system calls, which `stores.c` replaces.
_LEFT_OUT = {
    "aio.c",
    "io_pool.c",
    "io_uring.c",
    "iothread.c",
    "notify.c",
    "timer.c",
    "watchdog.c",
}

_CDEF = """
void stores_forget(void);
void stores_watch(uint64_t start, uint64_t length);
uint64_t stores_taken(void);
const uint8_t *stores_pictures(void);
void stores_copy_region(uint64_t guest_addr, uint64_t size, uint64_t host, uint64_t copy);
void stores_follow_log(uint64_t bits, uint64_t size);
struct vb_iothread *stores_iothread(void);
void stores_turn(void);
void stores_arm(void);
"""

#: Whether there is a C compiler.
AVAILABLE = shutil.which("cc") is not None


@cache
def traced_engine() -> Engine:
    """Build and load the engine."""
    ffi = FFI()
    for interface in interface_files():
        ffi.cdef(interface.read_text())
    ffi.cdef(_CDEF)
    with tempfile.TemporaryDirectory() as directory:
        return Engine(ffi, ffi.dlopen(str(_build(Path(directory)))))


def _build(directory: Path) -> Path:
    """Compile each file separately, as linking with ThreadSanitizer would add its runtime."""
    compile_ = ["cc", "-std=gnu11", "-O0", "-fPIC", "-w", f"-I{SRC}", "-c"]
    sources = [path for path in sorted(SRC.glob("*/*.c")) if path.name not in _LEFT_OUT]
    commands = [[*compile_, "-fsanitize=thread", str(path)] for path in sources]
    commands.append([*compile_, str(Path(__file__).with_name("stores.c"))])
    for compiling in [subprocess.Popen(command, cwd=directory) for command in commands]:
        assert compiling.wait() == 0
    library = directory / "stores.so"
    objects = sorted(str(path) for path in directory.glob("*.o"))
    subprocess.run(
        ["cc", "-shared", "-Wl,-z,defs", "-o", library, *objects, "-lpthread"], check=True
    )
    return library


class TracedThread(Iothread):
    """Replaces an iothread: its work is done by `turn` and `serve`."""

    def __init__(self) -> None:
        self.name = "traced"
        self.ffi, self.lib = traced_engine()
        self.handle = self.lib.stores_iothread()
        self._ports = {}
        self._buffers = None
        self._changed = self.ffi.new("struct vb_port *[]", 64)

    def turn(self) -> None:
        """Let the engine do all pending work."""
        self.lib.stores_turn()
        self.lib.stores_arm()

    def serve(self) -> None:
        """Do all pending work, requests for Python included; then ask for kicks."""
        self.lib.stores_turn()
        while self._take_upcalls():
            self.lib.stores_turn()
        self.lib.stores_arm()
        for listener in list(self._ports.values()):
            listener.engine_news()


def watch(areas: Sequence[tuple[int, int]]) -> None:
    """Set the areas (address and length) of which pictures are taken from now on."""
    lib = traced_engine().lib
    lib.stores_forget()
    for address, length in areas:
        lib.stores_watch(address, length)


def pictures(size: int) -> list[bytes]:
    """Return the pictures, of `size` bytes each, and forget them."""
    ffi, lib = traced_engine()
    count = lib.stores_taken()
    raw = bytes(ffi.buffer(lib.stores_pictures(), count * size)) if count else b""
    return [raw[start : start + size] for start in range(0, len(raw), size)]

# SPDX-License-Identifier: Apache-2.0
"""The engine's decisions one by one: those of its sources that decide, and `src/inspect.c`."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from cffi import FFI

from vhostblk.engine import Engine
from vhostblk.engine.build import SRC, interface_files

_HERE = Path(__file__).parent / "src"

#: The engine's sources that are called. They call no others.
_SOURCES = (
    "core/extent.c",
    "virtqueue/guest_memory.c",
    "virtqueue/packed.c",
    "virtqueue/request.c",
    "virtqueue/ring.c",
)

#: Whether there is a C compiler.
AVAILABLE = shutil.which("cc") is not None


@cache
def inspection() -> Engine:
    """Build and load it; used like the result of `vhostblk.engine.load()`."""
    ffi = FFI()
    for interface in (*interface_files(), _HERE / "inspect.cdef.h"):
        ffi.cdef(interface.read_text())
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "inspect.so"
        sources = [str(_HERE / "inspect.c"), *(str(SRC / source) for source in _SOURCES)]
        flags = ["-std=gnu11", "-O1", "-fPIC", "-w", "-shared", "-Wl,-z,defs", f"-I{SRC}"]
        subprocess.run(["cc", *flags, "-o", str(library), *sources], check=True)
        return Engine(ffi, ffi.dlopen(str(library)))

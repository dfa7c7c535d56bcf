# SPDX-License-Identifier: Apache-2.0
"""A second kind of port, which shows that the engine's core knows nothing of virtqueues.

`wire.c` is compiled with the core alone, into a library of its own.
"""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from pathlib import Path

from cffi import FFI

from vhostblk.engine import Engine
from vhostblk.engine.build import SRC, interface_files

_HERE = Path(__file__).parent


@cache
def wire_engine() -> Engine:
    """Build and load the core with this kind of port."""
    ffi = FFI()
    for interface in interface_files():
        if interface.parent.name == "core":
            ffi.cdef(interface.read_text())
    ffi.cdef((_HERE / "wire.cdef.h").read_text())
    with tempfile.TemporaryDirectory() as directory:
        return Engine(ffi, ffi.dlopen(str(_build(Path(directory)))))


def _build(directory: Path) -> Path:
    library = directory / "wire.so"
    sources = [str(path) for path in sorted((SRC / "core").glob("*.c"))]
    sources.append(str(_HERE / "wire.c"))
    options = ["-std=gnu11", "-O1", "-fPIC", "-shared", "-Wl,-z,defs", f"-I{SRC}"]
    subprocess.run(
        ["cc", *options, "-o", str(library), *sources, "-luring", "-lpthread"], check=True
    )
    return library

# SPDX-License-Identifier: Apache-2.0
"""Builds `vhostblk.engine._engine` through cffi's API mode.

`src/core` has the iothread and its file I/O. The other folders use it; each has a kind of port.
`NAME.cdef.h` declares what Python sees of `NAME.c`. The C file includes the very same text, so a
layout that both languages use is written down once. A `.cdef.h` file holds declarations only (no
preprocessor lines), because cffi parses it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cffi import FFI

SRC = Path(__file__).parent / "src"
ROOT = Path(__file__).parents[2]


def _pkg_config(*arguments: str) -> list[str]:
    try:
        done = subprocess.run(
            ["pkg-config", *arguments, "liburing"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    return done.stdout.split()


def interface_files() -> list[Path]:
    """List what Python sees of the engine."""
    return sorted(SRC.glob("*/*.cdef.h"))


def _header_of(interface: Path) -> str:
    return str(interface.relative_to(SRC)).replace(".cdef.h", ".h")


def make_ffibuilder() -> FFI:
    """Describe the extension; raises nothing when liburing is absent (compiling then fails)."""
    builder = FFI()
    interfaces = interface_files()
    for interface in interfaces:
        builder.cdef(interface.read_text())
    sanitize = os.environ.get("VHOSTBLK_SANITIZE", "").split()
    builder.set_source(
        "vhostblk.engine._engine",
        "".join(f'#include "{_header_of(path)}"\n' for path in interfaces),
        sources=[str(path.relative_to(ROOT)) for path in sorted(SRC.glob("*/*.c"))],
        include_dirs=[str(SRC.relative_to(ROOT))],
        depends=[str(path.relative_to(ROOT)) for path in sorted(SRC.glob("*/*.h"))],
        extra_compile_args=[
            "-std=gnu11",
            "-O2",
            "-flto",  # a request passes through many files
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",
            "-fvisibility=hidden",
            *_pkg_config("--cflags"),
            *sanitize,
        ],
        extra_link_args=[
            *(_pkg_config("--libs") or ["-luring"]),
            "-lpthread",
            "-O2",
            "-flto",
            *sanitize,
        ],
        py_limited_api=True,
        optional=True,
    )
    return builder


ffibuilder = make_ffibuilder()

# SPDX-License-Identifier: Apache-2.0
"""Builds `vhostblk.pr._connection` through cffi's API mode.

It is an extension of its own, because the helper must not load the engine.
`vhostblk/engine/build.py` has the rules for the files in `src`.
"""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

SRC = Path(__file__).parent / "src"
ROOT = Path(__file__).parents[2]


def make_ffibuilder() -> FFI:
    """Describe the extension."""
    builder = FFI()
    builder.cdef((SRC / "connection.cdef.h").read_text())
    sanitize = os.environ.get("VHOSTBLK_SANITIZE", "").split()
    source = SRC.relative_to(ROOT)
    builder.set_source(
        "vhostblk.pr._connection",
        '#include "connection.h"',
        sources=[str(source / "connection.c")],
        include_dirs=[str(source)],
        depends=[str(source / name) for name in ("connection.h", "connection.cdef.h")],
        extra_compile_args=[
            "-std=gnu11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",
            "-fvisibility=hidden",
            *sanitize,
        ],
        extra_link_args=sanitize,
        py_limited_api=True,
        optional=True,
    )
    return builder


ffibuilder = make_ffibuilder()

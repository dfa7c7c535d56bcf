# SPDX-License-Identifier: Apache-2.0
"""Compiles the load generator on demand: `load()` builds what is missing into `.cache/loadgen`.

The module's name carries a hash of its sources, so that a stale build is never loaded. Compiling
happens in a child process: `python -m benchmarks.loadgen.build`.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
SRC = Path(__file__).parent / "src"
BUILD = ROOT / ".cache" / "loadgen"


class BuildError(Exception):
    """The load generator could not be compiled."""


class Loadgen(NamedTuple):
    """The compiled load generator as cffi presents it."""

    ffi: Any
    lib: Any


def module_name() -> str:
    """Name of the extension module that the present sources make."""
    digest = hashlib.sha256(sys.version.encode())
    digest.update(Path(__file__).read_bytes())
    digest.update(os.environ.get("LOADGEN_CFLAGS", "").encode())
    for path in sorted(SRC.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return f"_loadgen_{digest.hexdigest()[:12]}"


def _module_path() -> Path:
    return BUILD / f"{module_name()}.abi3.so"


def compile_module() -> None:
    """Compile the extension into the build folder; to be run in a process of its own."""
    from cffi import FFI

    flags = os.environ.get("LOADGEN_CFLAGS", "").split()
    builder = FFI()
    builder.cdef((SRC / "loadgen.cdef.h").read_text())
    builder.set_source(
        module_name(),
        '#include "loadgen.h"\n',
        sources=[str(path) for path in sorted(SRC.glob("*.c"))],
        include_dirs=[str(SRC)],
        extra_compile_args=[
            *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"),
            *("-fno-strict-aliasing", "-fvisibility=hidden"),
            *flags,
        ],
        extra_link_args=flags,
        py_limited_api=True,
    )
    builder.compile(tmpdir=str(BUILD))


def _build() -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _module_path().exists():
            return
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.loadgen.build"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode or not _module_path().exists():
            raise BuildError(f"cannot compile the load generator:\n{done.stdout}{done.stderr}")


@functools.cache
def load() -> Loadgen:
    """Import the load generator, compiling it first where needed; raises BuildError."""
    path = _module_path()
    if not path.exists():
        _build()
    spec = importlib.util.spec_from_file_location(module_name(), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Loadgen(module.ffi, module.lib)


if __name__ == "__main__":
    compile_module()

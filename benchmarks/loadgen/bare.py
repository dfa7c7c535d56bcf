# SPDX-License-Identifier: Apache-2.0
"""A bare loop of system calls: what the storage gives one thread, without rings and requests."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

from benchmarks.loadgen.build import load

if TYPE_CHECKING:
    from pathlib import Path

MEMORY_ALIGNMENT = mmap.PAGESIZE


def bare_rate(
    path: Path,
    *,
    seconds: float,
    block_size: int = 4096,
    buffers: int = 1,
    write: bool = False,
    sequential: bool = False,
    direct: bool = False,
    seed: int = 1,
) -> float:
    """Return calls a second of `preadv2` or `pwritev2` on blocks of a file, one after the other.

    A block has `block_size` bytes (a multiple of 4096 if `direct`). `buffers` take turns, as with
    so many requests in flight. Raises OSError where a call fails or does less than a block.
    """
    ffi, lib = load()
    fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | (os.O_DIRECT if direct else 0))
    try:
        with mmap.mmap(-1, max(block_size, MEMORY_ALIGNMENT) * buffers) as memory:
            memory.write(b"\x5a" * (block_size * buffers))
            view = ffi.from_buffer("uint8_t[]", memory)
            bare = ffi.new(
                "struct lg_bare *",
                {
                    "fd": fd,
                    "buffers": view,
                    "slots": buffers,
                    "block_size": block_size,
                    "blocks": max(os.fstat(fd).st_size // block_size, 1),
                    "write": write,
                    "sequential": sequential,
                    "seed": seed,
                    "duration_ns": int(seconds * 1e9),
                },
            )
            failed = lib.lg_bare_run(bare)
            ffi.release(view)
    finally:
        os.close(fd)
    if failed:
        raise OSError(ffi.errno, f"{path}: call {bare.calls}: {os.strerror(ffi.errno)}")
    return int(bare.calls) / (int(bare.ns) / 1e9)

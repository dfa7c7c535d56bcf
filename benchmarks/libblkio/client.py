# SPDX-License-Identifier: Apache-2.0
"""Compiles and runs `bench.c`, against the libblkio of the Debian root."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.loadgen.build import BuildError
from benchmarks.loadgen.histogram import BUCKETS, Histogram
from benchmarks.loadgen.run import Result, RunError
from peers.debian import CACHE, LIBRARIES, TRIXIE, command, make_root

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(__file__).with_name("bench.c")
TIMEOUT = 60.0


def compile_bench() -> Path:
    """Compile the program unless it is up to date; raises BuildError or RootError."""
    make_root()
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    path = CACHE / "libblkio" / f"bench-{digest}"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # The headers and the C library of this system, which is the older one, serve both.
    compiler = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra"]
    compiler += ["-idirafter", str(TRIXIE.path / "usr/include"), "-o", str(path), str(SOURCE)]
    compiler += [str(TRIXIE.path / LIBRARIES / "libblkio.so.1"), "-Wl,--allow-shlib-undefined"]
    try:
        subprocess.run(compiler, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise BuildError("gcc is not installed") from error
    except subprocess.CalledProcessError as error:
        raise BuildError(f"cannot compile {SOURCE}:\n{error.stderr}") from error
    return path


def run_bench(
    socket: Path,
    *,
    depth: int,
    block_size: int,
    span: int,
    write: bool,
    sequential: bool,
    warm_up: float,
    seconds: float,
    seed: int,
    cpu_seconds: Callable[[], float],
) -> tuple[Result, float]:
    """Run it; return the result and how much `cpu_seconds()` grew meanwhile. Raises RunError."""
    manner = ["write" if write else "read", "sequential" if sequential else "random"]
    numbers = [str(depth), str(block_size), str(span)]
    arguments = [str(socket), *numbers, *manner, str(warm_up), str(seconds), str(seed)]
    process = subprocess.Popen(
        [*command(compile_bench()), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watchdog = threading.Timer(TIMEOUT + warm_up + seconds, process.kill)
    watchdog.start()
    with process:
        assert process.stdout is not None
        begin = process.stdout.readline()
        before = cpu_seconds()
        output = process.stdout.read()
        used = cpu_seconds() - before
    watchdog.cancel()
    if process.returncode == -signal.SIGKILL:
        raise RunError("LG_STALLED", "libblkio: the device stopped answering")
    if process.returncode:
        raise RunError("LG_IO_ERROR", f"libblkio: {(begin + output).strip()}")
    return _result(json.loads(output), write=write), used


def _result(answer: dict[str, object], *, write: bool) -> Result:
    counts = [0] * BUCKETS
    histogram = answer["histogram"]
    assert isinstance(histogram, dict)
    for bucket, count in histogram.items():
        counts[int(bucket)] = count
    requests = sum(counts)
    return Result(
        seconds=float(str(answer["ns"])) / 1e9,
        reads=0 if write else requests,
        writes=requests if write else 0,
        flushes=0,
        zeroes=0,
        kicks=0,
        interrupts=0,
        odd_lengths=0,
        latency=Histogram(counts),
    )

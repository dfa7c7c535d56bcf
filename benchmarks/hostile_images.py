# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.hostile_images`: what hostile and large qcow2 images cost.

Two tables. Small hostile images that are opened, checked and repaired: the processor's time, how
much the process grows, and how much storage the image takes afterwards. And the work on the
snapshots of a large image whose clusters are all allocated: the processor's time beside that of
`qemu-img`, and the longest time between two turns of the event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.daemons import ROOT
from benchmarks.report import format_table

if TYPE_CHECKING:
    from collections.abc import Sequence

USES = ("open", "check", "repair")
#: Images that are also put in a file of this length, nearly all of which is a hole.
SPARSE, LENGTH = ("many_snapshots", "scattered"), 100 << 30


def make_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hostile_images", description=__doc__
    )
    parser.add_argument("--size", type=int, default=256, help="GiB of the large image")
    parser.add_argument("--directory", type=Path, help="where to make images")
    parser.add_argument("--use", nargs=2, metavar=("IMAGE", "HOW"), help=argparse.SUPPRESS)
    parser.add_argument("--work", metavar="IMAGE", help=argparse.SUPPRESS)
    return parser


def _measured(*arguments: str) -> Any:
    """Run this module in a process of its own; return what it prints."""
    command = [sys.executable, "-m", "benchmarks.hostile_images", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


async def _use(path: str, how: str) -> None:
    from integration.qcow2.tools import opened
    from vhostblk.block.drivers.qcow2.node import Qcow2Node
    from vhostblk.block.errors import BlockError
    from vhostblk.block.graph.permissions import Perm

    perm = Perm.CONSISTENT_READ | (Perm.WRITE if how == "repair" else Perm.NONE)
    try:
        async with opened(path, perm) as (node, _):
            assert isinstance(node, Qcow2Node)
            if how != "open":
                await node.check_image(repair=how == "repair")
    except (BlockError, OSError) as error:
        print(f"{path}: {error}", file=sys.stderr)


def use(path: str, how: str) -> dict[str, float]:
    """Use an image; return what that takes beyond a sound one."""
    asyncio.run(_use(str(Path(path).with_name("sound")), how))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    asyncio.run(_use(path, how))
    return {
        "seconds": time.process_time() - start,
        "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def _small_rows(directory: Path) -> list[list[str]]:
    from integration.qcow2.hostile_images import IMAGES
    from integration.qcow2.tools import qemu_img

    qemu_img("create", "-q", "-f", "qcow2", directory / "sound", "1G")
    rows = [["image", "use", "CPU s", "MiB", "MiB on disk"]]
    for name, length in [*((name, 0) for name in IMAGES), *((name, LENGTH) for name in SPARSE)]:
        for how in USES:
            path = directory / "image"
            path.write_bytes(IMAGES[name]())
            if length:
                os.truncate(path, length)
            found = _measured("--use", str(path), how)
            stored = path.stat().st_blocks / 2048
            row = [f"{name}{', sparse' if length else ''}", how]
            rows.append([*row, f"{found['seconds']:.2f}", f"{found['mib']:.0f}", f"{stored:.1f}"])
    return rows


async def _watch(longest: list[float]) -> None:
    before = time.perf_counter()
    while True:
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        longest[0], before = max(longest[0], now - before - 0.001), now


async def work(path: str) -> dict[str, tuple[float, float]]:
    """Create, check and delete a snapshot; return the processor's time and the longest turn."""
    from integration.qcow2.tools import opened

    found = {}
    async with opened(path) as (node, backend):
        await backend.pwrite_zeroes(0, 512)
        disk: Any = node
        for name in ("create", "check", "delete"):
            longest = [0.0]
            watching = asyncio.ensure_future(_watch(longest))
            await asyncio.sleep(0.01)
            start = time.process_time()
            if name == "create":
                await disk.create_snapshot("s")
            elif name == "delete":
                await disk.delete_snapshot(name="s")
            else:
                await disk.check_image(repair=False)
            found[name] = (time.process_time() - start, longest[0])
            watching.cancel()
    return found


def _of_qemu(*arguments: str) -> float:
    """Return the processor's time that qemu-img takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["qemu-img", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _large_rows(directory: Path, size: int) -> list[list[str]]:
    path = str(directory / "large")
    form = ["-q", "-f", "qcow2", "-o", "preallocation=metadata"]
    subprocess.run(["qemu-img", "create", *form, path, f"{size}G"], check=True)
    ours = _measured("--work", path)
    theirs = {
        "create": _of_qemu("snapshot", "-c", "s", path),
        "check": _of_qemu("check", path),
        "delete": _of_qemu("snapshot", "-d", "s", path),
    }
    rows = [["snapshot", "CPU s", "of qemu-img", "ratio", "longest turn ms"]]
    for name, (seconds, longest) in ours.items():
        ratio = f"{seconds / theirs[name]:.2f}"
        row = [name, f"{seconds:.2f}", f"{theirs[name]:.2f}", ratio, f"{longest * 1e3:.0f}"]
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables; return the exit status."""
    options = make_parser().parse_args(arguments)
    if options.use:
        print(json.dumps(use(*options.use)))
        return 0
    if options.work:
        print(json.dumps(asyncio.run(work(options.work))))
        return 0
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        print(format_table(_small_rows(Path(directory))))
        print(format_table(_large_rows(Path(directory), options.size)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

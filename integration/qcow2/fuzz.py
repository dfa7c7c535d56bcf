# SPDX-License-Identifier: Apache-2.0
"""Hostile images: `python -m integration.qcow2.fuzz SECONDS` tries new ones for a time."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import tempfile
import time
from pathlib import Path

from integration.qcow2.tools import opened, qemu_img, qemu_io, read, run, write
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.permissions import Perm

SIZE = 1 << 20
#: No request on a small image takes longer; generous, as machines are slow at times.
PATIENCE = 60
#: Nothing is to outlast the machine, and disks are slow to say that it would.
CACHE = {"no-flush": True}

FORMS = [
    "cluster_size=4k",
    "cluster_size=512,refcount_bits=1",
    "extended_l2=on,cluster_size=16k",
    "cluster_size=4k,lazy_refcounts=on",
    "compat=0.10,cluster_size=4k",
]


def make_seed(path: Path, form: str) -> bytes:
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, SIZE)
    qemu_io(path, "write -q -P 1 0 200k", "write -q -P 2 700k 64k")
    if "refcount_bits=1" not in form:
        qemu_img("snapshot", "-c", "first", path)
    if "compat" not in form:
        qemu_img("bitmap", "--add", "--disable", path, "b")
    qemu_io(path, "write -q -P 3 100k 10k")
    return path.read_bytes()


def mutate(good: bytes, rng: random.Random) -> bytes:
    """Change some numbers, most of them in metadata."""
    data = bytearray(good)
    values = [0, 1, 0xFF, 1 << 62, 1 << 63, (1 << 63) - 512, 0x200, 0x1000, len(good), 1 << 40]
    for _ in range(rng.choice([1, 1, 2, 5])):
        area = rng.choice([112, 4096, 40960, len(data)])
        place = rng.randrange(min(area, len(data) - 8))
        if rng.random() < 0.3:
            data[place] ^= 1 << rng.randrange(8)
            continue
        place &= ~7
        value = rng.choice(
            [*values, rng.getrandbits(64), rng.randrange(len(good)) & ~511 | 1 << 63]
        )
        data[place : place + 8] = value.to_bytes(8, "big")
    return bytes(data)


async def _requests(path: Path, rng: random.Random, perm: Perm) -> None:
    try:
        async with opened(path, perm, backing=None, cache=CACHE) as (node, backend):
            size = min(node.size, SIZE)
            for _ in range(12):
                if size < 8192:
                    break
                offset = rng.randrange(size - 4096)
                length = rng.choice([1, 4096])
                try:
                    if not perm & Perm.WRITE or rng.random() < 0.3:
                        await read(backend, offset, length)
                        await node.block_status(offset, length)
                    elif rng.random() < 0.7:
                        await write(backend, offset, bytes(length))
                    elif rng.random() < 0.5:
                        await backend.pwrite_zeroes(offset, length)
                    else:
                        await backend.flush()
                except OSError:
                    continue
    except BlockError as error:
        assert "\n" not in str(error)  # noqa: PT017 -- an open that succeeds is right, too


def try_image(path: Path, data: bytes, rng: random.Random, perm: Perm) -> None:
    """Open a hostile image and use it; raises AssertionError, TimeoutError or what went wrong."""
    path.write_bytes(data)
    run(asyncio.wait_for(_requests(path, rng, perm), PATIENCE))
    # A table may be said to be anywhere, so the file may come to have a long hole.
    assert path.stat().st_blocks * 512 < 1 << 26


def main(seconds: float) -> None:
    """Try images until time is up; one that does harm is kept and named."""
    logging.disable()
    end, tried = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as where:
        path = Path(where) / "disk.qcow2"
        seeds = [make_seed(path, form) for form in FORMS]
        while time.monotonic() < end:
            number = random.getrandbits(32)
            rng = random.Random(number)
            data = mutate(rng.choice(seeds), rng)
            try:
                try_image(
                    path,
                    data,
                    rng,
                    rng.choice([Perm.CONSISTENT_READ, Perm.CONSISTENT_READ | Perm.WRITE]),
                )
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"hostile-{number}.qcow2"
                kept.write_bytes(data)
                print(f"harm done by {kept}", file=sys.stderr)
                raise
            tried += 1
    print(f"{tried} hostile images did no harm")


if __name__ == "__main__":
    main(float(sys.argv[1]))

# SPDX-License-Identifier: Apache-2.0
"""Images exchange their files while a front-end writes, in both lanes: no write is lost."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.frontend.blk import BlkDriver
from tests.frontend.connection import Connection
from tests.frontend.loop_thread import loop
from tests.frontend.memory import Memory
from tests.qmp_block import load
from tests.qmp_block.load import export_disk, serving, verify_under_changes
from tests.qmp_block.support import execute
from tests.virtio_blk.lanes import lane
from vhostblk.daemon import Daemon
from vhostblk.virtio_blk.layout import RequestType, Status

if TYPE_CHECKING:
    from pathlib import Path

    from tests.frontend.loop_thread import LoopThread

__all__ = ["lane", "loop"]  # fixtures

#: A block size that isn't aligned to clusters.
BLOCK = 5 * 512
BLOCKS = 1024
SIZE = BLOCKS * BLOCK
NAMES = ("a", "b")


def image(node: str, below: str) -> dict[str, Any]:
    return {"driver": "qcow2", "node-name": node, "file": below}


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True)


async def exchange_until(daemon: Daemon, done: asyncio.Event) -> int:
    """Swap the files of the exported image and another one; return how many times.

    Before each swap there is a reopen that fails after the first image has been loaded.
    """
    count = 0
    while not done.is_set():
        count += 1
        files = NAMES if count % 2 == 0 else NAMES[::-1]
        for below, expected in (
            (
                (files[0], "zeroes"),
                {"class": "GenericError", "desc": "Image is not in qcow2 format"},
            ),
            (files, {"return": {}}),
        ):
            changes = [image(*each) for each in zip(("disk", "other"), below, strict=True)]
            assert await execute(daemon, "blockdev-reopen", {"options": changes}) == expected
        await asyncio.sleep(0.002)
    return count


@pytest.mark.usefixtures("lane")
def test_every_write_is_in_one_of_the_files(tmp_path: Path, loop: LoopThread) -> None:
    """Each block is written once, and most go to clusters that others have been written to before.

    The second file uses direct I/O, if the file system supports it.
    """
    for name in NAMES:
        qemu_img("create", "-f", "qcow2", "-o", "cluster_size=16k", tmp_path / name, SIZE)
    (tmp_path / "zeroes").write_bytes(bytes(BLOCK))
    files: list[dict[str, Any]] = [
        {"driver": "file", "node-name": name, "filename": str(tmp_path / name)}
        for name in (*NAMES, "zeroes")
    ]
    files[1]["cache"] = {"direct": _is_direct(tmp_path / "b")}
    daemon = Daemon(blockdevs=[*files, image("disk", "a"), image("other", "b")])
    chosen = random.Random(1)
    order = chosen.sample(range(BLOCKS), BLOCKS)
    data = [chosen.randbytes(8) * (BLOCK // 8) for _ in range(BLOCKS)]

    async def start() -> None:
        await daemon.__aenter__()
        await export_disk(daemon, tmp_path)

    loop.run(start())
    done = asyncio.Event()
    try:
        with (
            closing(Memory()) as memory,
            BlkDriver(Connection.connect(tmp_path / "e.sock"), memory) as driver,
        ):
            changing = asyncio.run_coroutine_threadsafe(exchange_until(daemon, done), loop.loop)
            requests = driver.run_at_depth(
                16, BLOCKS, lambda n: (RequestType.OUT, order[n] * BLOCK, data[order[n]])
            )
            loop.loop.call_soon_threadsafe(done.set)
            assert changing.result(30) >= 4
            assert {request.status for request, _ in requests} == {Status.OK}
            driver.flush()
    finally:
        loop.loop.call_soon_threadsafe(done.set)
        loop.run(daemon.close())
    contents = [_content(tmp_path / name) for name in NAMES]
    for block in range(BLOCKS):
        found = {content[block * BLOCK : (block + 1) * BLOCK] for content in contents}
        assert found == {data[block], bytes(BLOCK)}, block
    assert all(any(content) for content in contents)


async def change_what_is_between(daemon: Daemon, done: asyncio.Event) -> int:
    """Insert and remove nodes between an image and its file; return how many times.

    With the filter the image keeps its tables; with `raw` it reads them again.
    """
    for count, below in enumerate(itertools.cycle(("throttle", "file", "raw"))):
        if done.is_set():
            return count
        answer = await execute(daemon, "blockdev-reopen", {"options": [image("disk", below)]})
        assert answer == {"return": {}}
        await asyncio.sleep(0.002)
    raise AssertionError


@pytest.mark.usefixtures("lane")
def test_nodes_come_and_go_below_an_image(tmp_path: Path, loop: LoopThread) -> None:
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=16k", tmp_path / "a", load.SIZE)
    daemon = Daemon(
        objects=[{"qom-type": "throttle-group", "id": "g"}],
        blockdevs=[
            {"driver": "file", "node-name": "file", "filename": str(tmp_path / "a")},
            {"driver": "throttle", "node-name": "throttle", "file": "file", "throttle-group": "g"},
            {"driver": "raw", "node-name": "raw", "file": "file"},
            image("disk", "file"),
        ],
        exports=[load.definition(tmp_path)],
    )
    with serving(daemon, loop, tmp_path / "e.sock") as driver:
        change = partial(change_what_is_between, daemon)
        assert verify_under_changes(driver, loop, change) >= 4
    qemu_img("check", "-f", "qcow2", tmp_path / "a")


def _is_direct(path: Path) -> bool:
    """Return whether a file can be opened for direct I/O."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def _content(path: Path) -> bytes:
    qemu_img("check", "-f", "qcow2", path)
    raw = path.with_suffix(".raw")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    return raw.read_bytes()

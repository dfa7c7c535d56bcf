# SPDX-License-Identifier: Apache-2.0
"""A daemon that serves a qcow2 image on the express lane, driven at depth.

Clusters are allocated, overwritten by the engine, discarded, zeroed and used again while other
requests are in flight; each 4 KiB block is in at most one request at a time.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from integration.qcow2.tools import check, content, qemu_img, qemu_io
from tests.block.support import options
from tests.exports.support import frontend
from tests.frontend.blk import BlkDriver, BlkRequest, range_segments
from tests.frontend.launch import Daemon, Program
from tests.frontend.memory import Memory
from tests.virtio_blk.support import UNSET
from vhostblk.block.graph.graph import Graph
from vhostblk.schema.throttle import UNLIMITED, ThrottleLimits, changed_limits
from vhostblk.virtio_blk.layout import RequestType

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 4096
BLOCKS = 2048
SIZE = BLOCKS * BLOCK

FORMS = ["cluster_size=64k", "cluster_size=4k", "extended_l2=on,cluster_size=64k"]


def _start(path: Path, directory: Path, options: str) -> Daemon:
    blockdevs = [
        f"driver=file,node-name=file,filename={path},discard=unmap",
        f"driver=qcow2,node-name=disk,file=file,discard=unmap{options}",
    ]
    return Daemon(
        Program.VHOSTBLK,
        directory,
        blockdevs,
        "id=export,node-name=disk,writable=on,iothread=io0",
        extra=["--object", "iothread,id=io0"],
    )


class _Client:
    """Keeps requests in flight that never overlap, and knows what the disk should have."""

    def __init__(self, driver: BlkDriver, rng: random.Random) -> None:
        self._driver, self._rng = driver, rng
        #: The byte that fills each block; -1: unknown.
        self.blocks = [0] * BLOCKS
        self._busy: dict[int, tuple[str, int, int, int]] = {}

    def run(self, count: int) -> None:
        for number in range(count):
            self._submit()
            if number % 4 == 3 or len(self._busy) >= 24:
                self._driver.kick()
                self._complete(self._driver.wait_some())
        self._complete(self._driver.drain())

    def _submit(self) -> None:
        rng = self._rng
        first = rng.randrange(BLOCKS)
        length = min(rng.choice([1, 1, 1, 2, 16, 32]), BLOCKS - first)
        if any(first < low + n and low < first + length for _, low, n, _ in self._busy.values()):
            return
        kind = rng.choice(["read"] * 4 + ["write"] * 8 + ["discard", "zero", "unmap", "flush"])
        byte = rng.randrange(1, 255)
        if kind == "write":
            data = bytes([byte]) * (length * BLOCK)
            request = self._driver.submit(RequestType.OUT, first * BLOCK, data_out=[data])
        elif kind == "read":
            request = self._driver.submit(RequestType.IN, first * BLOCK, data_in=[length * BLOCK])
        elif kind == "flush":
            request = self._driver.submit(RequestType.FLUSH)
            length = 0
        else:
            what = RequestType.DISCARD if kind == "discard" else RequestType.WRITE_ZEROES
            segments = range_segments([(first * BLOCK, length * BLOCK)], int(kind == "unmap"))
            request = self._driver.submit(what, data_out=[segments])
        self._busy[request.head] = (kind, first, length, byte)

    def _complete(self, done: list[tuple[BlkRequest, bytes]]) -> None:
        for request, data in done:
            assert request.status == 0, request
            head = request.head
            kind, first, length, byte = self._busy.pop(head)
            if kind == "read":
                for index in range(length):
                    known = self.blocks[first + index]
                    block = data[index * BLOCK : (index + 1) * BLOCK]
                    assert known == -1 or block == bytes([known]) * BLOCK, first + index
            elif kind != "flush":
                value = {"write": byte, "discard": -1}.get(kind, 0)
                self.blocks[first : first + length] = [value] * length


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("caches", ["", ",l2-cache-size=1024,l2-cache-entry-size=512"])
def test_requests_at_depth_and_the_engine_agree(
    tmp_path: Path, directory: Path, form: str, caches: str
) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, SIZE)
    rng = random.Random(f"{form}{caches}")
    memory = Memory()
    with _start(path, directory, caches) as daemon:
        with BlkDriver(daemon.connect(), memory) as driver:
            client = _Client(driver, rng)
            client.run(2500)
            driver.stop()
        assert daemon.stop() == 0
        assert not daemon.output()
    memory.close()
    check(path)
    found = content(path, tmp_path / "raw")
    for number, byte in enumerate(client.blocks):
        block = found[number * BLOCK : (number + 1) * BLOCK]
        assert byte == -1 or block == bytes([byte]) * BLOCK, number


def test_limits_below_the_image_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine does not bypass a throttle filter between the image and its file."""
    monkeypatch.setenv("VHOSTBLK_LANE", "express")
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    qemu_io(path, "write -q -P 1 0 64k")

    async def main() -> None:
        graph = Graph()
        graph.throttle_groups.add("g", UNLIMITED)
        file = {"driver": "file", "filename": str(path)}
        throttle = {"driver": "throttle", "throttle-group": "g", "file": file}
        node = await graph.add(options(driver="qcow2", node_name="disk", file=throttle))
        async with frontend(node) as front:
            await front.connect()
            await front.start()
            assert await front.done(front.request(RequestType.IN, want=512)) == 0
            group = graph.throttle_groups.find("g")
            group.set_limits(changed_limits(UNLIMITED, ThrottleLimits(bps_total=1)))
            assert await front.done(front.request(RequestType.IN, want=512)) == 0
            member = node.children["file"].node._member  # type: ignore[attr-defined]
            waiting = front.request(RequestType.IN, want=512)
            await front.until(lambda: member.waiting[0] or waiting.status != UNSET)
            assert waiting.status == UNSET
            group.set_limits(UNLIMITED)
            assert await front.done(waiting) == 0
        await front.block_backend.detach()
        await graph.close()
        graph.throttle_groups.close()

    asyncio.run(main())

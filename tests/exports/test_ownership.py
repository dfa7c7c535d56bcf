# SPDX-License-Identifier: Apache-2.0
"""Two daemons and one image: each has it while its front-end's queues run, and no longer."""

from __future__ import annotations

import asyncio
import os
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.block.locks import locked_bytes
from tests.block.support import options
from tests.exports.support import Frontend, frontend
from tests.virtio_blk.support import MIB, pattern
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.graph import Graph
from vhostblk.virtio_blk.layout import RequestType, Status
from vhostblk.virtqueue.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("lane")

IN, OUT = RequestType.IN, RequestType.OUT


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(MIB))
    return path


@pytest.fixture
def qcow2_image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    return path


def qemu_img(*arguments: str | Path) -> None:
    """Run qemu-img, without the sanitizer that these tests may have: its coroutines would hang."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run(["qemu-img", *arguments], env=environment, check=True)


def image_start(image: Path) -> bytes:
    with image.open("rb") as file:
        return file.read(512)


@asynccontextmanager
async def daemon(image: Path, driver: str = "raw") -> AsyncIterator[tuple[Frontend, Graph]]:
    """A graph of its own, an export that allows its node to be inactive, and a front-end."""
    graph = Graph()
    await graph.add(options(driver="file", node_name="f", filename=str(image), active=False))
    node = await graph.add(options(driver=driver, node_name="disk", file="f", active=False))
    async with frontend(node, graph=graph, allow_inactive=True) as front:
        await front.connect()
        yield front, graph
    await front.block_backend.detach()
    await graph.close()


async def stop(front: Frontend) -> None:
    """Stop the queue; the next start goes on where it was."""
    await front.device.stop_vring(0)
    front.rings[0].poll()


def test_image_goes_from_one_to_the_other_and_back(image: Path) -> None:
    async def main() -> None:
        async with daemon(image) as (here, _), daemon(image) as (there, _):
            assert not locked_bytes(image)
            for turn in range(2):
                for owner, other in ((here, there), (there, here)):
                    await owner.start()
                    content = owner.request(IN, want=512)
                    assert await owner.done(content) == Status.OK
                    with pytest.raises(SetupError, match="another process using the image"):
                        await other.start()
                    data = pattern(512, turn + (owner is here))
                    assert await owner.done(owner.request(OUT, send=data)) == Status.OK
                    await stop(owner)
                    assert not locked_bytes(image)
                    assert image_start(image) == data

    asyncio.run(main())


def test_metadata_goes_along(qcow2_image: Path) -> None:
    """Each turn allocates a cluster, which the other side then has to know of."""

    async def main() -> None:
        image = qcow2_image
        async with daemon(image, "qcow2") as (here, _), daemon(image, "qcow2") as (there, _):
            written = bytes(MIB)
            for turn, owner in enumerate([here, there, here, there]):
                await owner.start()
                content = owner.request(IN, want=MIB // 2)
                assert await owner.done(content) == Status.OK
                assert content.data == written[: MIB // 2]
                data = pattern((turn + 1) * 65536, turn)
                assert await owner.done(owner.request(OUT, send=data)) == Status.OK
                written = data + written[len(data) :]
                await stop(owner)
                assert not locked_bytes(image)
        await asyncio.to_thread(qemu_img, "check", "-q", image)

    asyncio.run(main())


def test_image_is_kept_until_the_last_queue_has_stopped(image: Path) -> None:
    async def main() -> None:
        async with daemon(image) as (front, _):
            await front.start(0)
            await front.start(1)
            await front.device.stop_vring(0)
            assert locked_bytes(image)
            assert await front.done(front.request(OUT, send=bytes(512), index=1)) == Status.OK
            await front.device.stop_vring(1)
            assert not locked_bytes(image)

    asyncio.run(main())


def test_front_end_that_leaves_leaves_the_image(image: Path) -> None:
    async def main() -> None:
        async with daemon(image) as (front, _):
            await front.start()
            await front.device.reset()
            assert not locked_bytes(image)

    asyncio.run(main())


def test_image_is_had_before_queues_start_late(image: Path) -> None:
    async def main() -> None:
        async with daemon(image) as (here, _), daemon(image) as (there, _):
            await here.device.claim()
            with pytest.raises(SetupError, match="another process using the image"):
                await there.device.claim()
            await here.start()
            assert await here.done(here.request(OUT, send=bytes(512))) == Status.OK
            await stop(here)
            await there.device.claim()
            await there.device.reset()
            assert not locked_bytes(image)

    asyncio.run(main())


def test_node_stays_active_while_queues_run(image: Path) -> None:
    async def main() -> None:
        async with daemon(image) as (front, graph):
            await front.start()
            with pytest.raises(BlockError, match="Operation not permitted"):
                await graph.set_active("disk", active=False)
            assert await front.done(front.request(OUT, send=bytes(512))) == Status.OK

    asyncio.run(main())

# SPDX-License-Identifier: Apache-2.0
"""SECURE_ERASE and GET_LIFETIME, on a disk that can, in both lanes."""

from __future__ import annotations

import asyncio
import struct

import pytest

from tests.exports.support import make_backend
from tests.virtio_blk.support import HandNode, bench
from vhostblk.block.erase import ErasesSecurely
from vhostblk.block.lifetime import HasLifetime, Lifetime
from vhostblk.virtio_blk.features import Feature
from vhostblk.virtio_blk.layout import CONFIG, RequestType, Status

pytestmark = pytest.mark.usefixtures("lane")

ERASE, LIFETIME = RequestType.SECURE_ERASE, RequestType.GET_LIFETIME


class FlashNode(HandNode, ErasesSecurely, HasLifetime):
    """A disk as an eMMC is one."""

    @property
    def erases_securely(self) -> bool:
        return True

    async def psecure_erase(self, offset: int, length: int) -> None:
        await self._turn(f"erase {offset}+{length}")

    @property
    def has_lifetime(self) -> bool:
        return True

    async def lifetime(self) -> Lifetime | None:
        return Lifetime(1, 2, 11)


@pytest.mark.parametrize(
    ("payload", "status", "log"),
    [
        (struct.pack("<QII", 8, 16, 0), Status.OK, ["erase 4096+8192"]),
        (struct.pack("<QII", 8, 16, 1), Status.UNSUPP, []),
        (struct.pack("<QII", 1 << 55, 16, 0), Status.IOERR, []),
        (bytes(15), Status.IOERR, []),
    ],
)
def test_secure_erase(payload: bytes, status: Status, log: list[str]) -> None:
    async def run() -> None:
        node = FlashNode()
        async with bench(node) as b:
            request = b.request(ERASE, send=payload)
            assert await b.used() == [(request.head, 1)]
            assert (request.status, node.log) == (status, log)

    asyncio.run(run())


def test_secure_erase_on_a_read_only_device() -> None:
    async def run() -> None:
        node = FlashNode()
        async with bench(node, writable=False) as b:
            request = b.request(ERASE, send=struct.pack("<QII", 8, 16, 0))
            await b.used()
            assert (request.status, node.log) == (Status.IOERR, [])

    asyncio.run(run())


@pytest.mark.parametrize("length", [0, 2, 6, 20])
def test_lifetime_in_buffers_of_any_length(length: int) -> None:
    async def run() -> None:
        async with bench(FlashNode()) as b:
            request = b.request(LIFETIME, want=length)
            given = min(length, 6)
            assert await b.used() == [(request.head, given + 1)]
            assert request.status == Status.OK
            assert request.data[:given] == struct.pack("<HHH", 1, 2, 11)[:given]

    asyncio.run(run())


def test_what_is_offered() -> None:
    both = Feature.SECURE_ERASE.mask | Feature.LIFETIME.mask
    device = make_backend(FlashNode())
    assert device.device_features & both == both
    erase = struct.unpack("<III", device.get_config(CONFIG.itemsize, 12))
    assert erase[0] > 0
    assert (erase[1], erase[2]) == (32, 1)
    read_only = make_backend(FlashNode(), writable=False)
    assert read_only.device_features & both == Feature.LIFETIME.mask
    plain = make_backend(HandNode())
    assert not plain.device_features & both
    assert plain.get_config(CONFIG.itemsize, 12) == bytes(12)

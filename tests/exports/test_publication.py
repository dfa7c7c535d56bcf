# SPDX-License-Identifier: Apache-2.0
"""The Python lane's ring, as seen by a driver that reads it all the time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.exports.support import frontend
from tests.virtio_blk.support import UNSET, HandNode, pattern
from vhostblk.virtio_blk.layout import RequestType, Status

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.usefixtures("ring_kind")


def test_status_and_data_are_there_when_a_request_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHOSTBLK_LANE", "python")
    found: dict[int, tuple[int, bytes]] = {}

    async def run() -> None:
        node = HandNode()
        node.data[:512] = pattern(512)
        node.by_hand = True
        async with frontend(node) as front:
            await front.connect()
            await front.start()
            # One that fails, and one that reads.
            requests = [
                front.request(RequestType.GET_LIFETIME, want=512),
                front.request(RequestType.IN, want=512),
            ]
            queue: Any = front.device.queues.running[0]
            ring = queue._ring
            original = ring.push

            def push(heads: NDArray[Any], lengths: NDArray[Any]) -> object:
                for request in requests:
                    if request.head in heads.tolist():
                        found[request.head] = request.status, request.data
                return original(heads, lengths)

            monkeypatch.setattr(ring, "push", push)
            await front.until(lambda: node.waiting)
            node.finish_all()
            for request in requests:
                await front.done(request)
            await front.until(lambda: len(found) == 2)
            assert found[requests[0].head][0] not in (UNSET, Status.OK)
            assert found[requests[1].head] == (Status.OK, pattern(512))

    asyncio.run(run())

# SPDX-License-Identifier: Apache-2.0
"""Drained sections: no request is in flight inside one, and none starts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.block.support import RW, options, run
from tests.virtio_blk.support import HandNode
from tests.virtio_blk.support import attach as attach_to
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.io.iovec import IoVec

#: Two stacks of nodes with a common base.
NODES: list[dict[str, Any]] = [
    {"driver": "null-co", "node_name": "base", "size": 1 << 20},
    {"driver": "raw", "node_name": "left", "file": "base"},
    {"driver": "raw", "node_name": "top", "file": "left"},
    {"driver": "null-co", "node_name": "other", "size": 1 << 20},
]


async def make_graph() -> Graph:
    graph = Graph()
    for members in NODES:
        await graph.add(options(**members))
    return graph


def attach(graph: Graph, name: str) -> BlockBackend:
    backend = BlockBackend(name, RW)
    backend.attach(graph, graph.find(name))
    return backend


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("requests", [1, 2, 5])
def test_it_begins_when_the_last_request_has_ended(requests: int) -> None:
    async def main() -> None:
        graph = await make_graph()
        backend = attach(graph, "base")
        backend.begin(requests)
        begun = asyncio.Event()

        async def section() -> None:
            async with graph.drained([graph.find("base")]):
                assert not backend.in_flight
                begun.set()

        task = asyncio.create_task(section())
        for left in range(requests, 0, -1):
            await turns()
            assert not begun.is_set(), left
            backend.end()
        await task
        await backend.detach()
        await graph.close()

    run(main)


@pytest.mark.parametrize("name", ["base", "left", "top"])
@pytest.mark.parametrize("drained", ["base", "left", "top"])
def test_it_holds_all_whose_requests_come_by(name: str, drained: str) -> None:
    async def main() -> None:
        graph = await make_graph()
        user, other = attach(graph, name), attach(graph, "other")
        above = ["base", "left", "top"].index(name) >= ["base", "left", "top"].index(drained)
        async with graph.drained([graph.find(drained)]):
            assert user.quiesced == above
            assert not other.quiesced
            late = attach(graph, name)
            assert late.quiesced == above
        assert not user.quiesced
        assert not late.quiesced
        for backend in (user, other, late):
            await backend.detach()
        await graph.close()

    run(main)


def test_a_request_that_waited_for_one_waits_for_the_next_one() -> None:
    """The second section begins before the request could continue."""

    async def main() -> None:
        graph = await make_graph()
        backend = attach(graph, "base")
        came_in = asyncio.Event()

        async def request() -> None:
            async with backend.request():
                came_in.set()

        backend.quiesce()
        task = asyncio.create_task(request())
        await turns()
        # The listener that is called first at the end begins another section.
        backend.add_drain_listener(Again(backend))
        backend.resume()
        await turns()
        assert not came_in.is_set()
        backend.resume()
        await task
        await backend.detach()
        await graph.close()

    run(main)


class Again:
    """Begins another drained section when one ends."""

    def __init__(self, backend: BlockBackend) -> None:
        self._backend = backend
        self._is_done = False

    def drained_begin(self) -> None:
        pass

    def drained_end(self) -> None:
        if not self._is_done:
            self._is_done = True
            self._backend.quiesce()


def test_detaching_waits_for_requests() -> None:
    async def main() -> None:
        graph = await make_graph()
        backend = attach(graph, "base")
        backend.begin()
        task = asyncio.create_task(backend.detach())
        await turns()
        assert not task.done()
        assert graph.find("base").parents
        backend.end()
        await task
        await graph.close()

    run(main)


def test_a_backend_waits_for_its_requests() -> None:
    async def main() -> None:
        node = HandNode()
        node.by_hand = True
        backend = attach_to(node)

        async def request() -> None:
            async with backend.request():
                await backend.preadv(0, IoVec.allocate(512))

        reading = asyncio.create_task(request())
        for _ in range(10):
            await asyncio.sleep(0)
        assert node.waiting
        section = backend.drained()
        entering = asyncio.create_task(section.__aenter__())
        for _ in range(10):
            await asyncio.sleep(0)
        early = entering.done()
        node.finish_all()
        await entering
        await section.__aexit__(None, None, None)
        await reading
        assert not early

    asyncio.run(main())

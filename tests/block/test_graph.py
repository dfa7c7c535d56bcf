# SPDX-License-Identifier: Apache-2.0
"""Nodes, names, edges and permissions."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import (
    RW,
    MemoryNode,
    backend_on,
    fails_with,
    options,
    read_bytes,
    run,
    write_bytes,
)
from vhostblk.block.errors import BlockError, NodeNotFoundError, PermissionConflictError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.node import BlockLimits
from vhostblk.block.graph.permission_update import cumulative
from vhostblk.block.graph.permissions import Perm

if TYPE_CHECKING:
    from pathlib import Path

NULL = {"driver": "null-co", "size": 1 << 20}


def refused(message: str, **members: Any) -> None:
    async def main() -> None:
        graph = Graph()
        await graph.add(options(node_name="base", **NULL))
        with pytest.raises(BlockError) as caught:
            await graph.add(options(**members))
        assert str(caught.value) == message
        assert [node.node_name for node in graph] == ["base"]
        assert not graph.find("base").parents
        await graph.close()

    run(main)


INVALID: list[tuple[str, dict[str, Any]]] = [
    ("'node-name' must be specified for the root node", NULL),
    ("Invalid node-name: '0a'", {**NULL, "node_name": "0a"}),
    ("Invalid node-name: ''", {**NULL, "node_name": ""}),
    ("Duplicate nodes with node-name='base'", {**NULL, "node_name": "base"}),
    ("Node name too long", {**NULL, "node_name": "x" * 32}),
    (
        "Cannot find device='nope' nor node-name='nope'",
        {"driver": "raw", "node_name": "r", "file": "nope"},
    ),
    (
        "Cannot find device='r' nor node-name='r'",
        {"driver": "raw", "node_name": "r", "file": "r"},
    ),
    (
        "Duplicate nodes with node-name='r'",
        {"driver": "raw", "node_name": "r", "file": {"driver": "null-co", "node-name": "r"}},
    ),
    (
        "force-share=on can only be used with read-only images",
        {**NULL, "node_name": "n", "force_share": True},
    ),
    (
        "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
        {**NULL, "node_name": "n", "detect_zeroes": "unmap"},
    ),
    (
        "Specified size is not multiple of 512",
        {"driver": "raw", "node_name": "r", "file": "base", "size": 1000},
    ),
    (
        "Offset (2000000) cannot be greater than size of the containing file (1048576)",
        {"driver": "raw", "node_name": "r", "file": "base", "offset": 2000000},
    ),
    (
        (
            "The sum of offset (512) and size (1048576) has to be smaller or equal to the  actual "
            "size of the containing file (1048576)"
        ),
        {"driver": "raw", "node_name": "r", "file": "base", "offset": 512, "size": 1048576},
    ),
    ("latency-ns is invalid", {**NULL, "node_name": "n", "latency_ns": 1 << 63}),
]


@pytest.mark.parametrize(("message", "members"), INVALID, ids=[text[:30] for text, _ in INVALID])
def test_invalid_definitions_leave_nothing_behind(message: str, members: dict[str, Any]) -> None:
    refused(message, **members)


def test_finding_and_removing() -> None:
    async def main() -> None:
        graph = Graph()
        await graph.add(options(node_name="base", **NULL))
        raw = await graph.add(options(driver="raw", node_name="raw", file="base"))
        backend = BlockBackend("", RW)
        backend.attach(graph, raw)
        with pytest.raises(NodeNotFoundError) as missing:
            graph.find("x")
        assert str(missing.value) == "Cannot find device='' nor node-name='x'"
        for name, message in (
            ("x", "Failed to find node with node-name='x'"),
            ("base", "Block device base is in use"),
            ("raw", "Node raw is in use"),
        ):
            with pytest.raises(BlockError) as caught:
                await graph.remove(name)
            assert str(caught.value) == message
        await backend.detach()
        await graph.remove("raw")
        await graph.remove("base")
        assert not list(graph)

    run(main)


def test_inline_children_go_with_their_parent(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))

    async def main() -> None:
        graph = Graph()
        child = {"driver": "file", "filename": str(path)}
        raw = await graph.add(
            options(driver="raw", node_name="raw", file=child, read_only=True, discard="unmap")
        )
        inner = raw.children["file"].node
        assert inner.node_name.startswith("#block")
        assert inner.read_only
        assert inner.options.discard.value == "unmap"
        await graph.add(options(driver="raw", node_name="other", file=inner.node_name))
        await graph.remove("raw")
        assert {node.node_name for node in graph} == {"other", inner.node_name}
        await graph.remove("other")
        assert not list(graph)

    run(main)


def test_named_inline_children_are_not_the_users() -> None:
    async def main() -> None:
        graph = Graph()
        child = {"driver": "null-co", "node-name": "inner"}
        await graph.add(options(driver="raw", node_name="raw", file=child))
        with pytest.raises(BlockError, match="Node inner is not owned by the monitor"):
            await graph.remove("inner")
        await graph.close()

    run(main)


def test_a_window_reads_and_writes_its_part() -> None:
    async def main() -> None:
        graph = Graph()
        base = MemoryNode(8192, BlockLimits(request_alignment=512))
        graph._nodes["memory"] = base
        window = await graph.add(
            options(driver="raw", node_name="w", file="memory", offset=100, size=1024)
        )
        backend = BlockBackend("test", RW)
        backend.attach(graph, window)
        assert backend.size == 1024
        await write_bytes(backend, 10, b"hello")
        assert base.data[108:117] == b"\0\0hello\0\0"
        assert await read_bytes(backend, 8, 8) == b"\0\0hello\0"
        await backend.pwrite_zeroes(0, 1024)
        assert not any(base.data)
        await backend.detach()

    run(main)


def test_permissions_travel_down_and_back() -> None:
    async def main() -> None:
        graph = Graph()
        base = await graph.add(options(node_name="base", **NULL))
        raw = await graph.add(options(driver="raw", node_name="raw", file="base"))
        assert cumulative(base) == (Perm.NONE, Perm.ALL, Perm.ALL)
        writer = BlockBackend("w", RW)
        writer.attach(graph, raw)
        outside = Perm.ALL & ~(Perm.WRITE | Perm.RESIZE)
        assert cumulative(base) == (RW, Perm.ALL, outside)
        assert base.granted == (RW, outside)
        second = BlockBackend("w2", RW)
        second.attach(graph, raw)
        await writer.detach()
        assert base.granted == (RW, outside)
        await second.detach()
        assert base.granted == (Perm.NONE, Perm.ALL)
        await graph.close()

    run(main)


def test_conflicts_name_both_sides_and_change_nothing() -> None:
    async def main() -> None:
        graph = Graph()
        base = await graph.add(options(node_name="base", **NULL))
        raw = await graph.add(options(driver="raw", node_name="raw", file="base"))
        window = await graph.add(options(driver="raw", node_name="win", file="base", size=4096))
        with pytest.raises(PermissionConflictError) as caught:
            BlockBackend("", Perm.RESIZE).attach(graph, raw)
        assert str(caught.value) == (
            "Permission conflict on node 'base': permissions 'resize' are both required by node "
            "'raw' (uses node 'base' as 'file' child) and unshared by node 'win' (uses node 'base' "
            "as 'file' child)."
        )
        assert not raw.parents
        assert cumulative(base)[0] == Perm.NONE
        reader = BlockBackend("reader", Perm.CONSISTENT_READ, Perm.ALL & ~Perm.WRITE)
        reader.attach(graph, window)
        with pytest.raises(PermissionConflictError, match="'write' are both required by node"):
            BlockBackend("", RW).attach(graph, raw)
        await reader.detach()
        BlockBackend("", RW).attach(graph, raw)

    run(main)


def test_writers_are_refused_on_read_only_nodes() -> None:
    async def main() -> None:
        graph = Graph()
        await graph.add(options(node_name="base", read_only=True, **NULL))
        raw = await graph.add(options(driver="raw", node_name="raw", file="base"))
        with pytest.raises(BlockError, match="Block node is read-only"):
            BlockBackend("", RW).attach(graph, raw)
        assert not raw.parents
        BlockBackend("", Perm.CONSISTENT_READ).attach(graph, raw)

    run(main)


def test_a_node_that_cannot_have_its_permissions_undoes_the_others() -> None:
    """Two files below one node would do; here the node at the bottom refuses."""

    async def main() -> None:
        graph = Graph()
        base = await graph.add(options(node_name="base", **NULL))
        raw = await graph.add(options(driver="raw", node_name="raw", file="base"))
        seen: list[Perm] = []

        def refuse(perm: Perm, shared: Perm) -> None:
            if perm & Perm.WRITE:
                raise BlockError("no")

        base.apply_permissions = refuse  # type: ignore[method-assign]
        raw.apply_permissions = lambda perm, shared: seen.append(perm)  # type: ignore[method-assign]
        with pytest.raises(BlockError, match="no"):
            BlockBackend("", RW).attach(graph, raw)
        assert seen[-1] == Perm.NONE
        assert raw.granted == base.granted == (Perm.NONE, Perm.ALL)
        assert raw.children["file"].perm == Perm.NONE

    run(main)


def test_the_graph_refuses_to_close_under_its_users() -> None:
    async def main() -> None:
        graph = Graph()
        base = await graph.add(options(node_name="base", **NULL))
        backend = BlockBackend("", RW)
        backend.attach(graph, base)
        with pytest.raises(BlockError, match="Node base is in use"):
            await graph.close()
        await backend.detach()
        await graph.close()
        with fails_with(errno.ENOMEDIUM):
            await backend.flush()
        with fails_with(errno.ENOMEDIUM):
            await read_bytes(backend, 0, 1)

    run(main)


# Drain.


class Listener:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def drained_begin(self) -> None:
        self.events.append("begin")

    def drained_end(self) -> None:
        self.events.append("end")


def test_drained_sections_wait_nest_and_hold_new_requests() -> None:
    import asyncio

    async def main() -> None:
        _, backend = backend_on(MemoryNode(4096, BlockLimits()))
        listener = Listener()
        backend.add_drain_listener(listener)
        order: list[str] = []
        backend.begin(2)

        async def drainer() -> None:
            async with backend.drained():
                async with backend.drained():
                    assert backend.in_flight == 0
                assert backend.quiesced
                order.append("drained")
                await asyncio.sleep(0)
                order.append("leaving")

        async def requester() -> None:
            async with backend.request():
                order.append("request")

        draining = asyncio.create_task(drainer())
        await asyncio.sleep(0)
        requesting = asyncio.create_task(requester())
        await asyncio.sleep(0)
        assert listener.events == ["begin"]
        backend.end()
        assert not order
        backend.end()
        await asyncio.gather(draining, requesting)
        assert order == ["drained", "leaving", "request"]
        assert listener.events == ["begin", "end"]
        assert not backend.quiesced

    run(main)

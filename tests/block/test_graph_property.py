# SPDX-License-Identifier: Apache-2.0
"""Random sequences of graph operations against an obvious model, with failures injected."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.block.locks import locked_bytes
from tests.block.support import RW, options
from tests.block.test_reopen import snapshot
from tests.descriptors import open_fds
from vhostblk.block.drivers.raw import RawNode
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.drain import with_descendants
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.node import BlockNode
from vhostblk.block.graph.permission_update import cumulative, derive
from vhostblk.block.graph.permissions import Perm

NAMES = ("f", "g", "a", "b", "c")
FILES = ("f", "g")
SIZE = 1 << 16

_name = st.sampled_from(NAMES)
_rarely = st.sampled_from((True, False, False, False))
_raw = st.fixed_dictionaries(
    {"driver": st.just("raw"), "file": st.sampled_from((*NAMES, "f", "g", "inline"))},
    optional={
        "read_only": _rarely,
        "offset": st.sampled_from((0, 512, 1024, 1 << 20)),
        "size": st.sampled_from((512, SIZE // 2)),
    },
)
_file = st.fixed_dictionaries(
    {"driver": st.just("file")},
    optional={
        "read_only": _rarely,
        "auto_read_only": st.booleans(),
        "discard": st.sampled_from(("ignore", "unmap")),
        "cache": st.fixed_dictionaries({"no-flush": st.booleans()}),
        "detect_zeroes": st.sampled_from(("off", "on", "unmap")),
    },
)
_definition = st.one_of(
    st.tuples(st.sampled_from(FILES), _file),
    st.tuples(st.sampled_from(NAMES[2:]), _raw),
    st.tuples(_name, st.one_of(_raw, _file)),
)
_operation = st.one_of(
    st.tuples(st.just("add"), _definition),
    st.tuples(st.just("del"), _name),
    st.tuples(st.just("reopen"), st.lists(_definition, min_size=1, max_size=3)),
    st.tuples(st.just("reopen"), st.lists(_definition, min_size=1, max_size=2)),
    st.tuples(st.just("attach"), st.tuples(_name, st.sampled_from((Perm.NONE, RW, Perm.RESIZE)))),
    st.tuples(st.just("detach"), st.integers(0, 5)),
    st.tuples(st.just("resize"), st.tuples(_name, st.sampled_from((SIZE, 512, 2 * SIZE)))),
    st.tuples(st.just("active"), st.tuples(st.one_of(_name, st.none()), st.booleans())),
    st.tuples(st.just("threshold"), st.tuples(_name, st.sampled_from((0, 512)))),
)


class Model:
    """The graph, and what it must be: who was added, and who uses what."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.graph = Graph()
        self.owned: set[str] = set()
        self.backends: list[BlockBackend] = []

    def path(self, name: str) -> Path:
        return self.directory / name

    def options(self, definition: tuple[str, dict[str, Any]]) -> Any:
        name, members = definition
        members = {"node_name": name, **members}
        if members["driver"] == "file":
            members.setdefault("filename", str(self.path(name)))
        elif members["file"] == "inline":
            members["file"] = {"driver": "file", "filename": str(self.path("inline"))}
        return options(**members)

    async def apply(self, kind: str, argument: Any) -> None:
        """Do one operation; refusals change nothing."""
        before = snapshot(self.graph)
        try:
            await getattr(self, f"do_{kind}")(argument)
        except BlockError:
            assert snapshot(self.graph) == before

    async def do_add(self, definition: tuple[str, dict[str, Any]]) -> None:
        await self.graph.add(self.options(definition))
        self.owned.add(definition[0])

    async def do_del(self, name: str) -> None:
        await self.graph.remove(name)
        self.owned.remove(name)

    async def do_reopen(self, definitions: list[tuple[str, dict[str, Any]]]) -> None:
        await self.graph.reopen([self.options(definition) for definition in definitions])

    async def do_attach(self, argument: tuple[str, Perm]) -> None:
        name, perm = argument
        backend = BlockBackend("", perm)
        backend.attach(self.graph, self.graph.find(name))
        self.backends.append(backend)

    async def do_detach(self, index: int) -> None:
        if index < len(self.backends):
            await self.backends.pop(index).detach()

    async def do_resize(self, argument: tuple[str, int]) -> None:
        name, size = argument
        await self.graph.resize(self.graph.find(name), size)

    async def do_active(self, argument: tuple[str | None, bool]) -> None:
        name, active = argument
        await self.graph.set_active(name, active=active)

    async def do_threshold(self, argument: tuple[str, int]) -> None:
        name, offset = argument
        await self.graph.set_write_threshold(self.graph.find(name), offset)

    def check(self) -> None:
        nodes = list(self.graph)
        by_name = {node.node_name: node for node in nodes}
        assert self.owned <= by_name.keys()
        for node in nodes:
            self.check_node(node)
        # Nobody is there without a user.
        assert {node.node_name for node in nodes if not node.parents} <= self.owned
        for backend in self.backends:
            assert not backend.quiesced
            assert backend.edge in backend.node.parents
            assert backend.node in nodes
        assert sum(len(node.parents) for node in nodes) == len(self.backends) + sum(
            len(node.children) for node in nodes
        )

    def check_node(self, node: BlockNode) -> None:
        perm, _, outside = cumulative(node)
        assert node.granted == (perm, outside)
        assert not (node.read_only and perm & Perm.WRITE)
        assert node.active or not perm
        for first in node.parents:
            assert all(
                not first.perm & ~second.shared for second in node.parents if second is not first
            )
            parent = first.parent
            if isinstance(parent, BlockNode):
                assert parent.children[first.role] is first
                assert node.active or not parent.active
                wanted = (first.perm, first.shared, first.shared_outside)
                derive(first)
                assert wanted == (first.perm, first.shared, first.shared_outside)
            elif node.active:
                assert first.perm == parent.perm
        assert not set(with_descendants([node])) & {edge.parent for edge in node.parents}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(_operation, max_size=25), st.lists(st.integers(0, 60), max_size=4))
def test_operations_keep_the_graph_whole(
    operations: list[tuple[str, Any]], failures: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        model = Model(Path(directory))
        for name in (*NAMES, "inline"):
            model.path(name).write_bytes(bytes(SIZE))
        inject(patch, failures)

        async def main() -> None:
            before = open_fds()
            for name in NAMES:
                members = {"driver": "file"} if name in FILES else {"driver": "raw", "file": "f"}
                await model.apply("add", (name, members))
            for kind, argument in operations:
                await model.apply(kind, argument)
                model.check()
            for backend in model.backends:
                await backend.detach()
            await model.graph.close()
            assert not list(model.graph)
            assert open_fds() <= before
            for name in (*NAMES, "inline"):
                assert not locked_bytes(model.path(name))

        asyncio.run(main())


def inject(patch: pytest.MonkeyPatch, failures: list[int]) -> None:
    """Let the n-th attempts to open a file, or to check a window, fail."""
    count = iter(range(1 << 30))

    def fail() -> None:
        if next(count) in failures:
            raise BlockError("injected")

    opener, checker = os.open, RawNode.check_children

    def failing_open(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_NONBLOCK:
            fail()
        return opener(path, flags, *more, **named)

    def failing_check(node: RawNode) -> None:
        fail()
        checker(node)

    patch.setattr(os, "open", failing_open)
    patch.setattr(RawNode, "check_children", failing_check)

# SPDX-License-Identifier: Apache-2.0
"""`Graph.reopen`: other options and children for nodes in use, all or nothing."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.block.locks import locked_bytes
from tests.block.support import RW, options, read_bytes, run, write_bytes
from tests.descriptors import open_fds
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.permissions import Perm
from vhostblk.schema.blockdev import BlockdevDiscardOptions

NULL = {"driver": "null-co", "size": 1 << 20}


@pytest.fixture
def disk(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    return {"driver": "file", "node_name": "file", "filename": str(path)}


def access_mode(fd: int) -> int:
    """Return O_RDONLY or O_RDWR, and O_DIRECT."""
    flags = int(Path(f"/proc/self/fdinfo/{fd}").read_text().split("flags:")[1].split()[0], 8)
    return flags & (os.O_ACCMODE | os.O_DIRECT)


async def refused(graph: Graph, message: str, *definitions: dict[str, Any]) -> None:
    """Expect a message, and that nothing changes."""
    before = snapshot(graph)
    fds = open_fds()
    with pytest.raises(BlockError) as caught:
        await graph.reopen([options(**members) for members in definitions])
    assert str(caught.value) == message
    assert snapshot(graph) == before
    assert open_fds() <= fds


def snapshot(graph: Graph) -> list[Any]:
    return [
        (
            node.node_name,
            node.options,
            node.given_options,
            node.read_only,
            node.granted,
            node.size,
            node.limits,
            [
                (edge.role, edge.node.node_name, edge.perm, edge.shared)
                for edge in node.children.values()
            ],
            list(node.parents),
            "preadv" in node.__dict__,
        )
        for node in graph
    ]


def test_read_only_and_back(disk: dict[str, Any]) -> None:
    async def main() -> None:
        graph = Graph()
        node: Any = await graph.add(options(**disk))
        fd = node.fd
        assert access_mode(fd) == os.O_RDWR
        await graph.reopen([options(**disk, read_only=True)])
        assert node.read_only
        assert node.fd == fd
        assert access_mode(fd) == os.O_RDONLY
        with pytest.raises(BlockError, match="Block node is read-only"):
            BlockBackend("", RW).attach(graph, node)
        await graph.reopen([options(**disk)])
        assert access_mode(fd) == os.O_RDWR
        BlockBackend("", RW).attach(graph, node)

    run(main)


def test_a_node_that_cannot_be_flushed_stays_what_it_is(disk: dict[str, Any]) -> None:
    async def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    async def main() -> None:
        graph = Graph()
        node: Any = await graph.add(options(**disk))
        backend = BlockBackend("", RW)
        backend.attach(graph, node)
        await write_bytes(backend, 0, b"hello")
        with mock.patch.object(node, "flush", fail):
            with pytest.raises(BlockError, match=r"^Error flushing drive: Input/output error$"):
                await graph.reopen([options(**disk, discard="unmap")])
        assert node.options.discard is not BlockdevDiscardOptions.UNMAP
        await backend.detach()
        await graph.close()

    run(main)


def test_all_nodes_go_back_where_a_later_check_refuses_one(disk: dict[str, Any]) -> None:
    """All of them already use the new options by then."""

    async def main() -> None:
        graph = Graph()
        file = await graph.add(options(**disk))
        window = {"driver": "raw", "node_name": "raw", "file": "file"}
        raw: Any = await graph.add(options(**window))
        with pytest.raises(BlockError, match="cannot be greater than size of the containing file"):
            await graph.reopen(
                [options(**disk, discard="unmap"), options(**window, offset=1 << 40)]
            )
        assert file.options.discard is not BlockdevDiscardOptions.UNMAP
        assert raw.offset == 0
        assert raw.size == file.size
        await graph.close()

    run(main)


def test_direct_takes_effect_with_a_user(disk: dict[str, Any]) -> None:
    async def main() -> None:
        graph = Graph()
        node: Any = await graph.add(options(**disk))
        raw = await graph.add(options(driver="raw", node_name="raw", file="file"))
        backend = BlockBackend("", RW)
        backend.attach(graph, raw)
        await write_bytes(backend, 3, b"hello")
        try:
            await graph.reopen([options(**disk, cache={"direct": True})])
        except BlockError as error:
            pytest.skip(str(error))
        assert access_mode(node.fd) & os.O_DIRECT
        assert node.limits.request_alignment >= 512
        await write_bytes(backend, 9, b"world")  # read, modified, written
        assert await read_bytes(backend, 2, 13) == b"\0hello\0world\0"
        await graph.reopen([options(**disk, discard="unmap", detect_zeroes="unmap")])
        assert node.limits.request_alignment == 1
        extents = backend.extent_map()
        assert extents is not None
        assert not extents.writable
        await backend.detach()
        await graph.close()

    run(main)


def test_reopening_follows_auto_read_only(disk: dict[str, Any]) -> None:
    async def main() -> None:
        graph = Graph()
        node: Any = await graph.add(options(**disk))
        modes = []
        for auto_read_only in (True, False, True):
            await graph.reopen([options(**disk, auto_read_only=auto_read_only)])
            modes.append(access_mode(node.fd))
        assert modes == [os.O_RDONLY, os.O_RDWR, os.O_RDONLY]
        backend = BlockBackend("", RW)
        backend.attach(graph, node)
        await graph.reopen([options(**disk, auto_read_only=False)])
        await graph.reopen([options(**disk, auto_read_only=True)])
        assert access_mode(node.fd) == os.O_RDWR
        await backend.detach()
        assert access_mode(node.fd) == os.O_RDONLY
        await graph.close()

    run(main)


def test_locks_follow_to_the_new_file(disk: dict[str, Any]) -> None:
    from tests.block.locks import locked_bytes

    path = Path(disk["filename"])

    async def main() -> None:
        graph = Graph()
        node = await graph.add(options(**disk, auto_read_only=True))
        backend = BlockBackend("", RW)
        backend.attach(graph, node)
        held = locked_bytes(path)
        assert held
        try:
            await graph.reopen([options(**disk, cache={"direct": True})])
        except BlockError as error:
            pytest.skip(str(error))
        assert locked_bytes(path) == held
        await refused(
            graph,
            "Read-only block node 'file' cannot support read-write users",
            {**disk, "read_only": True},
        )
        assert locked_bytes(path) == held
        await backend.detach()
        await graph.close()
        assert not locked_bytes(path)

    run(main)


def test_a_child_takes_anothers_place_between_two_requests() -> None:
    async def main() -> None:
        graph = Graph()
        await graph.add(options(node_name="a", read_zeroes=True, **NULL))
        await graph.add(options(node_name="b", driver="null-co", size=1 << 19, read_zeroes=True))
        raw = await graph.add(options(driver="raw", node_name="raw", file="a"))
        backend = BlockBackend("", RW)
        backend.attach(graph, raw)
        sizes: list[int] = []
        backend.on_resize(lambda: sizes.append(backend.size))
        backend.begin()
        change = options(driver="raw", node_name="raw", file="b")
        reopening = asyncio.create_task(graph.reopen([change]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert raw.children["file"].node.node_name == "a"
        late = BlockBackend("late", Perm.CONSISTENT_READ)
        late.attach(graph, raw)  # meanwhile
        assert [late.quiesced, backend.quiesced] == [True, True]
        backend.end()
        await reopening
        assert [late.quiesced, backend.quiesced] == [False, False]
        assert sizes == [1 << 19]
        assert graph.find("a").granted == (Perm.NONE, Perm.ALL)
        assert graph.find("b").granted[0] == RW
        await write_bytes(backend, 0, b"x")
        await graph.remove("a")

    run(main)


def test_an_inline_child_that_is_replaced_goes_away() -> None:
    async def main() -> None:
        graph = Graph()
        await graph.add(options(node_name="a", **NULL))
        await graph.add(options(driver="raw", node_name="raw", file=NULL))
        await graph.reopen([options(driver="raw", node_name="raw", file="a")])
        assert {node.node_name for node in graph} == {"a", "raw"}

    run(main)


def test_an_inline_child_inherits_again(disk: dict[str, Any]) -> None:
    inline = {"driver": "file", "filename": disk["filename"]}

    async def main() -> None:
        graph = Graph()
        raw = await graph.add(options(driver="raw", node_name="raw", file=inline))
        child = raw.children["file"].node
        again = {"driver": "raw", "node_name": "raw", "read_only": True}
        for ref in (inline, child.node_name):
            await graph.reopen([options(**again, file=ref)])
            assert child.read_only
            await graph.reopen([options(driver="raw", node_name="raw", file=ref)])
            assert not child.read_only
        await refused(
            graph,
            "Cannot change the option 'node-name'",
            {**again, "file": {**inline, "node-name": "x"}},
        )
        await graph.close()

    run(main)


def test_windows_move(disk: dict[str, Any]) -> None:
    async def main() -> None:
        graph = Graph()
        await graph.add(options(**disk))
        raw = {"driver": "raw", "node_name": "raw", "file": "file"}
        node = await graph.add(options(**raw))
        backend = BlockBackend("", RW)
        backend.attach(graph, node)
        await write_bytes(backend, 1000, b"x")
        await graph.reopen([options(**raw, offset=512, size=1024)])
        assert backend.size == 1024
        assert await read_bytes(backend, 488, 1) == b"x"
        await refused(
            graph,
            "The sum of offset (512) and size (1048576) has to be smaller or equal to the  actual "
            "size of the containing file (1048576)",
            {**raw, "offset": 512, "size": 1 << 20},
        )
        await refused(graph, "Specified size is not multiple of 512", {**raw, "size": 1})
        await graph.reopen([options(**raw)])
        assert await read_bytes(backend, 1000, 1) == b"x"
        await backend.detach()
        await graph.close()

    run(main)


def test_what_is_not_for_change(disk: dict[str, Any]) -> None:
    async def main() -> None:
        graph = Graph()
        await graph.add(options(**disk))
        await graph.add(options(node_name="n", **NULL))
        raw = {"driver": "raw", "node_name": "r", "file": "file"}
        await graph.add(options(**raw))
        await graph.add(options(driver="raw", node_name="top", file="r"))
        for message, members in (
            ("node-name not specified", NULL),
            ("Failed to find node with node-name='x'", {**NULL, "node_name": "x"}),
            ("Cannot change the option 'filename'", {**disk, "filename": "/x"}),
            ("Cannot change the option 'aio'", {**disk, "aio": "threads"}),
            ("Cannot change the option 'locking'", {**disk, "locking": "off"}),
            (
                "Option 'size' cannot be reset to its default value",
                {"driver": "null-co", "node_name": "n"},
            ),
            ("Cannot change the option 'size'", {**NULL, "node_name": "n", "size": 512}),
            (
                "Option 'filename' cannot be reset to its default value",
                {**NULL, "node_name": "file"},
            ),
            ("Cannot find device='' nor node-name='x'", {**raw, "file": "x"}),
            ("Making 'r' a file child of 'r' would create a cycle", {**raw, "file": "r"}),
            ("Making 'top' a file child of 'r' would create a cycle", {**raw, "file": "top"}),
            ("Cannot change the option 'file.driver'", {**raw, "file": NULL}),
            (
                (
                    "setting detect-zeroes to unmap is not allowed without setting discard "
                    "operation to unmap"
                ),
                {**disk, "detect_zeroes": "unmap"},
            ),
        ):
            await refused(graph, message, members)
        await graph.close()

    run(main)


def test_one_refusal_takes_back_what_others_had_agreed_to(disk: dict[str, Any]) -> None:
    async def main() -> None:
        graph = Graph()
        await graph.add(options(**disk))
        node = await graph.add(options(driver="raw", node_name="r", file="file"))
        await graph.add(options(driver="raw", node_name="s", file="file"))
        backend = BlockBackend("", RW)
        backend.attach(graph, node)
        await refused(
            graph,
            "Cannot change the option 'filename'",
            {"driver": "raw", "node_name": "s", "file": "r", "read_only": True},
            {"driver": "raw", "node_name": "r", "file": "file", "offset": 512},
            {**disk, "cache": {"no-flush": True}, "filename": "/x"},
        )
        path = disk["filename"]
        os.rename(path, f"{path}.moved")  # noqa: PTH104
        await refused(
            graph,
            f"Could not open '{path}': No such file or directory",
            {"driver": "raw", "node_name": "s", "file": "r", "read_only": True},
            {**disk, "cache": {"direct": True}},
        )
        await backend.detach()
        await graph.close()

    run(main)


@pytest.mark.parametrize("reason", ["options", "first writer"])
def test_a_file_that_has_been_replaced_is_not_opened_in_its_place(
    disk: dict[str, Any], reason: str
) -> None:
    async def main() -> None:
        graph = Graph()
        path = Path(disk["filename"])
        members = {"auto_read_only": True} if reason == "first writer" else {"read_only": True}
        node: Any = await graph.add(options(**disk, **members))
        inode = os.fstat(node.fd).st_ino
        other = path.with_name("other")
        other.write_bytes(b"o" * (1 << 20))
        other.rename(path)
        message = "the file has been replaced"
        backend = BlockBackend("", RW)
        if reason == "options":
            await refused(graph, f"Could not open '{path}': {message}", disk)
        else:
            with pytest.raises(BlockError, match=message):
                backend.attach(graph, node)
        assert os.fstat(node.fd).st_ino == inode
        assert access_mode(node.fd) == os.O_RDONLY
        await graph.close()
        assert path.read_bytes() == b"o" * (1 << 20)  # noqa: ASYNC240

    run(main)


def test_a_file_stays_locked_while_it_is_reopened(disk: dict[str, Any]) -> None:
    async def main() -> None:
        graph = Graph()
        path = Path(disk["filename"])
        node: Any = await graph.add(options(**disk, auto_read_only=True))
        backend = BlockBackend("", RW)
        backend.attach(graph, node)  # opens it again, for writing
        exclusive = {100, 101, 201, 203}
        assert locked_bytes(path) == exclusive
        for direct in (True, False):
            await graph.reopen([options(**disk, cache={"direct": direct})])
            assert locked_bytes(path) == exclusive
        await backend.detach()
        await graph.close()
        assert not locked_bytes(path)

    run(main)

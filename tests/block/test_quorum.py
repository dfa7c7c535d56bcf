# SPDX-License-Identifier: Apache-2.0
"""`quorum` and `blkverify`, apart from what is held against QEMU."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.block.support import RW, fails_with, options, read_bytes, run, write_bytes
from vhostblk.block.drivers.quorum_vote import Versions
from vhostblk.block.errors import BlockError, PermissionConflictError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.completion import Completion, outcomes
from vhostblk.schema.errors import OptionError
from vhostblk.schema.options import blockdev_options

if TYPE_CHECKING:
    from pathlib import Path

    from vhostblk.events import Event

SIZE = 3 << 20


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9))
def test_the_winner_has_most_votes_and_turned_up_last(votes: list[str]) -> None:
    versions: Versions[str] = Versions()
    for voter, version in enumerate(votes):
        versions.add(version, voter)
    counts = Counter(votes)
    best = [version for version in dict.fromkeys(votes) if counts[version] == max(counts.values())]
    assert versions.winner == best[-1]
    others = [voter for voter, version in enumerate(votes) if version != best[-1]]
    assert sorted(versions.outvoted()) == others


def test_outcomes_come_in_order_and_other_exceptions_at_the_end() -> None:
    async def main() -> None:
        waits: list[Completion[None]] = [Completion() for _ in range(3)]

        async def wait(index: int) -> None:
            await waits[index]

        task = asyncio.create_task(outcomes([wait(index) for index in range(3)]))
        await asyncio.sleep(0)
        waits[2].set_result(None)
        waits[0].set_exception(OSError(errno.EIO, "x"))
        await asyncio.sleep(0)
        assert not task.done()
        waits[1].set_result(None)
        first, *others = await task
        assert first is not None
        assert others == [None, None]

        async def fail() -> None:
            raise ValueError("injected")

        with pytest.raises(ValueError, match="injected"):
            await outcomes([fail()])

    run(main)


async def open_quorum(
    directory: Path, contents: str = "aaa", **members: Any
) -> tuple[Graph, BlockBackend, list[Event]]:
    graph = Graph()
    happened: list[Event] = []
    graph.events.listen(happened.append)
    names = [f"n{index}" for index in range(len(contents))]
    for name, byte in zip(names, contents, strict=True):
        (directory / name).write_bytes(byte.encode() * SIZE)
        await graph.add(
            options(driver="file", node_name=name, filename=str(directory / name), discard="unmap")
        )
    wanted = {"vote_threshold": 2, **members}
    await graph.add(options(driver="quorum", node_name="q", children=names, **wanted))
    backend = BlockBackend("test", RW)
    backend.attach(graph, graph.find("q"))
    return graph, backend, happened


def test_long_requests_take_bounded_memory(tmp_path: Path) -> None:
    async def main() -> None:
        graph, backend, happened = await open_quorum(tmp_path, "aab", rewrite_corrupted=True)
        assert backend.limits.max_transfer <= 1 << 20
        assert await read_bytes(backend, 512, SIZE - 512) == b"a" * (SIZE - 512)
        assert {event.name for event in happened} == {"QUORUM_REPORT_BAD"}
        await write_bytes(backend, 1024, b"w" * (2 << 20))
        await backend.detach()
        await graph.close()
        for name in ("n0", "n1", "n2"):
            data = (tmp_path / name).read_bytes()
            assert data[1024 : 1024 + (2 << 20)] == b"w" * (2 << 20)
            assert data[(2 << 20) + 1024 :] == b"a" * (SIZE - (2 << 20) - 1024)

    run(main)


def test_a_shorter_child_fails_where_it_ends(tmp_path: Path) -> None:
    """QEMU's daemon aborts."""

    async def main() -> None:
        graph, backend, happened = await open_quorum(tmp_path)
        (tmp_path / "short").write_bytes(b"a" * 4096)
        short = {"driver": "file", "filename": str(tmp_path / "short")}
        await graph.add(options(**short, node_name="s"))
        await graph.add_child(graph.find("q"), graph.find("s"))
        await write_bytes(backend, 4096, b"x" * 4096)
        assert [getattr(event.data, "node_name", None) for event in happened] == ["s"]
        assert (tmp_path / "short").stat().st_size == 4096
        assert await read_bytes(backend, 4096, 4096) == b"x" * 4096
        await graph.remove_child(graph.find("q"), "children.3")
        await backend.detach()
        await graph.close()

    run(main)


def test_children_that_cant_be_added(tmp_path: Path) -> None:
    async def main() -> None:
        graph, backend, _ = await open_quorum(tmp_path)
        quorum = graph.find("q")
        await graph.add(options(driver="null-co", node_name="x"))
        with pytest.raises(BlockError, match="The node x does not support adding a child"):
            await graph.add_child(graph.find("x"), quorum)
        await backend.detach()
        above = await graph.add(options(driver="raw", node_name="r", file="q"))
        with pytest.raises(
            BlockError, match=r"'r' a children\.3 child of 'q' would create a cycle"
        ):
            await graph.add_child(quorum, above)
        inactive = await graph.add(options(driver="null-co", node_name="i", active=False))
        with pytest.raises(BlockError, match=r"Inactive 'i' can't be a children\.3 child"):
            await graph.add_child(quorum, inactive)
        assert list(quorum.children) == ["children.0", "children.1", "children.2"]
        await graph.add_child(quorum, graph.find("x"))
        assert list(quorum.children)[3:] == ["children.3"]
        await graph.close()

    run(main)


def test_too_few_agree_after_failures(tmp_path: Path) -> None:
    async def main() -> None:
        graph, backend, happened = await open_quorum(tmp_path, "aba", vote_threshold=3)
        with fails_with(errno.EIO):
            await read_bytes(backend, 0, 512)
        assert [event.name for event in happened] == ["QUORUM_FAILURE"]
        await backend.detach()
        await graph.close()

    run(main)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            "driver=blkverify,raw=a,test=b",
            "blkverify: read offset=512 bytes=1024 contents mismatch at offset 1000",
        ),
        (
            "driver=quorum,children.0=a,children.1=b,vote-threshold=2,blkverify=on",
            "quorum: offset=512 bytes=1024 contents mismatch at offset 1000",
        ),
    ],
)
def test_a_mismatch_ends_the_process(tmp_path: Path, node: str, message: str) -> None:
    program = """
import asyncio, sys
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.io.iovec import IoVec
from vhostblk.block.graph.permissions import Perm
from vhostblk.daemon import Daemon
from vhostblk.fatal import clean_up_with

async def main(*blockdevs):
    clean_up_with(lambda: print("cleaned up", flush=True))
    async with Daemon(blockdevs=blockdevs) as daemon:
        backend = BlockBackend("b", Perm.CONSISTENT_READ)
        backend.attach(daemon.graph, daemon.graph.find("v"))
        await backend.preadv(0, IoVec.allocate(512))
        print("same", flush=True)
        await backend.preadv(512, IoVec.allocate(1024))

asyncio.run(main(*sys.argv[1:]))
"""
    (tmp_path / "a").write_bytes(bytes(4096))
    (tmp_path / "b").write_bytes(bytes(1000) + b"x" + bytes(3095))
    files = [f"driver=file,node-name={name},filename={tmp_path / name}" for name in "ab"]
    done = subprocess.run(
        [sys.executable, "-c", program, *files, f"{node},node-name=v"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "same\ncleaned up\n")
    assert done.stderr == message + "\n"


def test_replication_is_reserved() -> None:
    for definition in (
        "driver=replication,node-name=r,mode=primary,file.driver=null-co",
        "driver=raw,node-name=r,file.driver=replication",
    ):
        with pytest.raises(OptionError) as caught:
            blockdev_options(definition)
        assert str(caught.value) == "Driver 'replication' is not available in vhostblk"


class Failing:
    """Makes a child's requests fail."""

    def __init__(self, graph: Graph, name: str, code: int = errno.EIO) -> None:
        self._node: Any = graph.find(name)
        self._code = code
        self.flushes = 0

    async def fail(self, *_arguments: Any) -> None:
        raise OSError(self._code, "injected")

    def writes(self) -> None:
        self._node.pwritev = self._node.pwrite_zeroes = self.fail
        for edge in self._node.parents:
            edge.refresh()

    def flush(self) -> None:
        self._node.flush = self.fail

    def count(self) -> None:
        async def flush() -> None:
            self.flushes += 1

        self._node.flush = flush


@pytest.mark.parametrize("what", ["write", "zeroes", "flush"])
def test_too_few_children_are_not_enough(tmp_path: Path, what: str) -> None:
    """It has to succeed on two of three."""

    async def main() -> None:
        graph, backend, _ = await open_quorum(tmp_path)
        for name, is_enough in (("n1", True), ("n0", False)):
            failing = Failing(graph, name)
            failing.flush() if what == "flush" else failing.writes()
            if what == "write":
                request = write_bytes(backend, 0, b"x" * 512)
            else:
                request = backend.flush() if what == "flush" else backend.pwrite_zeroes(0, 512)
            if is_enough:
                await request
                continue
            with fails_with(errno.EIO):
                await request
        await backend.detach()
        await graph.close()

    run(main)


def test_all_children_are_flushed(tmp_path: Path) -> None:
    async def main() -> None:
        graph, backend, _ = await open_quorum(tmp_path)
        counting = [Failing(graph, name) for name in ("n0", "n1", "n2")]
        for each in counting:
            each.count()
        await write_bytes(backend, 0, b"x" * 512)
        await backend.flush()
        assert [each.flushes for each in counting] == [1, 1, 1]
        await backend.detach()
        await graph.close()

    run(main)


@pytest.mark.parametrize("perm", [Perm.WRITE, Perm.RESIZE])
def test_nobody_changes_one_child_alone(tmp_path: Path, perm: Perm) -> None:
    async def main() -> None:
        graph, backend, _ = await open_quorum(tmp_path)
        with pytest.raises(PermissionConflictError):
            BlockBackend("other", perm).attach(graph, graph.find("n1"))
        await backend.detach()
        await graph.close()

    run(main)

# SPDX-License-Identifier: Apache-2.0
"""`transaction`: all or nothing, answered as QEMU's storage daemon does; no write is torn by it."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import RW, read_bytes, write_bytes
from tests.frontend.loop_thread import loop
from tests.qmp_block.load import export_disk, serving, verify_under_changes
from tests.qmp_block.support import Call, check_answers, execute
from tests.qmp_block.test_overlay import add
from tests.virtio_blk.lanes import lane
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.permissions import Perm
from vhostblk.daemon import Daemon

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.frontend.loop_thread import LoopThread
    from vhostblk.block.graph.node import BlockNode

__all__ = ["lane", "loop"]  # fixtures

NODES: Call = ("query-named-block-nodes", {})


def do(*actions: tuple[str, dict[str, Any]], **members: Any) -> Call:
    listed = [{"type": kind, "data": data} for kind, data in actions]
    return "transaction", {"actions": listed, **members}


def bitmap(what: str, name: str, node: str = "n", **members: Any) -> tuple[str, dict[str, Any]]:
    return f"block-dirty-bitmap-{what}", {"node": node, "name": name, **members}


def merge(target: str, *sources: str) -> tuple[str, dict[str, Any]]:
    data = {"node": "n", "target": target, "bitmaps": list(sources)}
    return "block-dirty-bitmap-merge", data


def internal(device: str, name: str) -> tuple[str, dict[str, Any]]:
    return "blockdev-snapshot-internal-sync", {"device": device, "name": name}


def sync(node: str, overlay: str, directory: Path) -> tuple[str, dict[str, Any]]:
    data = {"node-name": node, "snapshot-file": f"{directory}/{overlay}"}
    return "blockdev-snapshot-sync", {**data, "snapshot-node-name": overlay}


def json_sync(node: str, overlay: str, path: str, **members: Any) -> tuple[str, dict[str, Any]]:
    tree = {"driver": "qcow2", "file": {"driver": "file", "filename": path}}
    data = {"node-name": node, "snapshot-file": f"json:{json.dumps(tree)}"}
    return "blockdev-snapshot-sync", {**data, "snapshot-node-name": overlay, **members}


def snapshot(node: str, overlay: str) -> tuple[str, dict[str, Any]]:
    return "blockdev-snapshot", {"node": node, "overlay": overlay}


ABORT: tuple[str, dict[str, Any]] = ("abort", {})


def script(directory: Path) -> list[Call]:
    """Make images, and return calls that use them."""
    for name in ("d0", "d1", "loose", "fixed", "spare"):
        path = directory / name
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    grouped = {"completion-mode": "grouped"}
    file = {"driver": "file", "filename": f"{directory}/fixed"}
    fixed = {"driver": "qcow2", "node-name": "fixed", "file": file}
    return [
        ("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 1 << 20}),
        *(
            (
                "blockdev-add",
                {
                    "driver": "qcow2",
                    "node-name": name,
                    "file": {"driver": "file", "filename": f"{directory}/{name}"},
                },
            )
            for name in ("d0", "d1", "loose")
        ),
        do(),
        do(properties={}),
        do(properties=grouped),
        do(ABORT, properties=grouped),
        do(bitmap("add", "a"), ABORT, properties=grouped),
        do(ABORT, properties={"completion-mode": "individual"}),
        do(properties={"completion-mode": "other"}),
        do(ABORT),
        do(("abort", {"more": 1})),
        ("transaction", {"actions": [{"type": "abort"}]}),
        ("transaction", {"actions": [{"data": {}}]}),
        ("transaction", {"actions": {}}),
        ("transaction", {}),
        # Bitmaps.
        do(bitmap("add", "a"), ABORT),
        NODES,
        do(bitmap("add", "a"), bitmap("add", "a")),
        do(bitmap("add", "a"), bitmap("add", "b", "nobody")),
        do(bitmap("add", "")),
        do(bitmap("add", "a", granularity=5)),
        NODES,
        do(bitmap("add", "a"), bitmap("add", "b", disabled=True), merge("a", "b")),
        do(bitmap("clear", "a"), bitmap("disable", "a"), bitmap("enable", "b")),
        NODES,
        do(bitmap("enable", "a"), bitmap("disable", "b"), merge("a", "b"), ABORT),
        NODES,
        do(bitmap("remove", "a"), ABORT),
        do(bitmap("remove", "a"), bitmap("clear", "a")),
        do(bitmap("remove", "a"), bitmap("remove", "a")),
        do(bitmap("remove", "a"), bitmap("add", "a")),
        do(bitmap("remove", "nothing")),
        NODES,
        do(bitmap("remove", "a"), bitmap("add", "c", persistent=False)),
        do(bitmap("add", "kept", "d0", persistent=True), bitmap("add", "kept", "d1"), ABORT),
        NODES,
        do(bitmap("add", "kept", "d0", persistent=True)),
        do(bitmap("remove", "kept", "d0"), ABORT),
        NODES,
        do(bitmap("remove", "kept", "d0")),
        NODES,
        # Snapshots.
        do(internal("d0", "s"), internal("d1", "s")),
        do(internal("d0", "t"), ABORT),
        do(internal("d0", "t"), internal("d0", "t")),
        do(internal("d0", "t"), internal("d0", "")),
        do(internal("d0", "t"), internal("n", "t")),
        do(internal("d0", "t"), internal("nobody", "t")),
        NODES,
        do(sync("d0", "o0", directory), sync("d1", "o1", directory), ABORT),
        NODES,
        do(sync("d0", "o0", directory), sync("d1", "d0", directory)),
        do(sync("d0", "o0", directory), sync("d1", "o0", directory)),
        do(sync("d0", "o0", directory / "nowhere")),
        NODES,
        do(snapshot("d1", "loose"), ABORT),
        do(snapshot("d1", "loose"), snapshot("d0", "loose")),
        NODES,
        do(snapshot("d1", "loose"), bitmap("add", "new", "loose"), internal("loose", "inside")),
        do(internal("d1", "below")),
        NODES,
        ("blockdev-add", {**fixed, "read-only": True}),
        do(sync("fixed", "o2", directory), internal("o2", "s")),
        do(sync("fixed", "o2", directory), bitmap("add", "b", "o2")),
        *(
            do(json_sync("fixed", "o3", f"{directory}/spare", mode=mode))
            for mode in ("absolute-paths", "existing")
        ),
        NODES,
    ]


def reduced(answer: Any) -> Any:
    """Leave what an answer says of nodes in general, of bitmaps and of snapshots."""
    if not isinstance(answer.get("return"), list):
        return answer
    return [
        (
            node["node-name"],
            node["drv"],
            node["ro"],
            node["backing_file_depth"],
            node.get("dirty-bitmaps", []),
            [(each["id"], each["name"]) for each in node["image"].get("snapshots", [])],
        )
        for node in answer["return"]
    ]


def test_answers_are_those_of_qemu(tmp_path: Path) -> None:
    check_answers(tmp_path, script, reduced)


async def answer(daemon: Daemon, call: Call) -> Any:
    return await execute(daemon, *call)


def test_an_abort_gives_bitmaps_back_what_they_had() -> None:
    async def main() -> None:
        async with Daemon() as daemon:
            await daemon.add_blockdev({"driver": "null-co", "node-name": "n", "size": 1 << 20})
            await answer(daemon, do(bitmap("add", "a"), bitmap("add", "b")))
            found = {each.name: each for each in daemon.graph.find("n").bitmaps}
            found["a"].mark(0, 1)
            found["b"].mark(1 << 19, 1)
            for change in (bitmap("clear", "a"), merge("a", "b"), bitmap("disable", "a")):
                assert "desc" in await answer(daemon, do(change, ABORT))
                assert list(found["a"].areas()) == [(0, 65536)]
                assert found["a"].recording
            assert "return" in await answer(daemon, do(bitmap("clear", "a"), merge("a", "b")))
            assert list(found["a"].areas()) == [(1 << 19, 65536)]

    asyncio.run(main())


def test_an_abort_undoes_the_last_action_first() -> None:
    """The second action has saved the bitmap without its bits, and restores that."""

    async def main() -> None:
        async with Daemon() as daemon:
            await daemon.add_blockdev({"driver": "null-co", "node-name": "n", "size": 1 << 20})
            await answer(daemon, do(bitmap("add", "a"), bitmap("add", "b")))
            found = {each.name: each for each in daemon.graph.find("n").bitmaps}
            found["a"].mark(0, 1)
            found["b"].mark(1 << 19, 1)
            for second in (merge("a", "b"), bitmap("clear", "a")):
                assert "desc" in await answer(daemon, do(bitmap("clear", "a"), second, ABORT))
                assert list(found["a"].areas()) == [(0, 65536)]

    asyncio.run(main())


def test_an_abort_leaves_no_file_and_no_node(tmp_path: Path) -> None:
    async def main() -> None:
        async with Daemon() as daemon:
            await add(daemon, tmp_path / "d0")
            before = await execute(daemon, "x-debug-query-block-graph", {})
            failed = await answer(daemon, do(sync("d0", "o0", tmp_path), ABORT))
            assert failed["desc"] == "Transaction aborted using Abort action"
            assert await execute(daemon, "x-debug-query-block-graph", {}) == before
            assert not daemon.graph.find("d0").read_only
            assert "return" in await answer(daemon, do(sync("d0", "o0", tmp_path)))

    asyncio.run(main())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["d0", "o0"]


@pytest.mark.parametrize("first", ["snapshot", "removal"])
def test_a_bitmap_that_is_removed_does_not_come_back(tmp_path: Path, first: str) -> None:
    """The snapshot makes the image read-only, which then gets the bitmaps that it has."""
    actions = [sync("d0", "o0", tmp_path), bitmap("remove", "gone", "d0")]
    if first == "removal":
        actions.reverse()

    async def main() -> None:
        async with Daemon() as daemon:
            await add(daemon, tmp_path / "d0")
            for name in ("gone", "kept"):
                added = bitmap("add", name, "d0", persistent=True)
                assert "return" in await answer(daemon, do(added))
            assert "desc" in await answer(daemon, do(*actions, ABORT))
            assert [each.name for each in daemon.graph.find("d0").bitmaps] == ["kept", "gone"]
            assert "return" in await answer(daemon, do(*actions))
        async with Daemon() as daemon:
            file = {"driver": "file", "filename": str(tmp_path / "d0")}
            node = await daemon.add_blockdev({"driver": "qcow2", "node-name": "n", "file": file})
            assert [each.name for each in node.bitmaps] == ["kept"]

    asyncio.run(main())


def test_snapshots_of_two_disks_are_of_one_moment(tmp_path: Path) -> None:
    """A number is written to one disk, then to the other: they never differ by more than one."""

    async def main() -> None:
        async with Daemon() as daemon:
            users = []
            for name in ("d0", "d1"):
                await add(daemon, tmp_path / name)
                users.append(BlockBackend(name, RW))
                users[-1].attach(daemon.graph, daemon.graph.find(name))
            written = 0

            async def count() -> None:
                nonlocal written
                while True:
                    for user in users:
                        async with user.request():
                            await write_bytes(user, 0, (written + 1).to_bytes(512, "big"))
                    written += 1
                    await asyncio.sleep(0)

            counting = asyncio.create_task(count())
            tops = ["d0", "d1"]
            for number in range(4):
                goal = written + 5
                await asyncio.wait_for(reached(lambda: written >= goal), 20)  # noqa: B023
                below = [daemon.graph.find(name) for name in tops]
                overlays = [f"o{number}d0", f"o{number}d1"]
                actions = [sync(*pair, tmp_path) for pair in zip(tops, overlays, strict=True)]
                assert "return" in await answer(daemon, do(*actions))
                first, second = [await number_in(daemon, node) for node in below]
                assert goal <= second <= first <= second + 1
                tops = overlays
            counting.cancel()
            await asyncio.wait([counting])
            for user in users:
                await user.detach()

    asyncio.run(main())


async def reached(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    for _ in iter(condition, True):
        await asyncio.sleep(0)


async def number_in(daemon: Daemon, node: BlockNode) -> int:
    """Read the number that a disk had when its snapshot was taken."""
    looker = BlockBackend("looker", Perm.CONSISTENT_READ)
    looker.attach(daemon.graph, node)
    try:
        return int.from_bytes(await read_bytes(looker, 0, 512), "big")
    finally:
        await looker.detach()


@pytest.mark.usefixtures("lane")
def test_a_guest_sees_nothing_of_transactions(tmp_path: Path, loop: LoopThread) -> None:
    daemon = Daemon()

    async def transactions(done: asyncio.Event) -> int:
        top, number = "disk", 0
        while not done.is_set() and number < 6:
            number += 1
            name = f"n{number}"
            changes = [internal(top, "s"), sync(top, name, tmp_path), bitmap("add", "b", name)]
            assert "desc" in await answer(daemon, do(*changes, ABORT))
            assert "return" in await answer(daemon, do(*changes))
            top = name
            assert daemon.exports["e"].backend.node.node_name == top
        return number

    async def start() -> None:
        await add(daemon, tmp_path / "disk")
        await export_disk(daemon, tmp_path)

    loop.run(start())
    with serving(daemon, loop, tmp_path / "e.sock") as driver:
        assert verify_under_changes(driver, loop, transactions) >= 1

# SPDX-License-Identifier: Apache-2.0
"""What is told of a daemon makes the same daemon; what can't be told is refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from vhostblk.block.graph.actions import perform
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.overlay import NewOverlayAction
from vhostblk.block.graph.permissions import Perm
from vhostblk.daemon import Daemon
from vhostblk.handover import configuration
from vhostblk.handover.errors import HandoverError
from vhostblk.schema.options import blockdev_options

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

SIZE = "children.1.size=1048576"
NULL = "null-co,size=1048576,node-name="


def described(daemon: Daemon) -> tuple[Any, ...]:
    return (
        configuration.objects(daemon),
        configuration.blockdevs(daemon),
        configuration.exports(daemon),
    )


def test_the_same_again(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    blockdevs = [
        f"raw,node-name=r,discard=unmap,offset=4096,file.driver=file,file.filename={image}",
        f"{NULL}n,read-zeroes=on",
        "throttle,node-name=t,throttle-group=g,file=r",
        f"quorum,node-name=q,vote-threshold=1,children.0=n,children.1.driver=null-co,{SIZE}",
    ]

    async def main() -> None:
        address = f"addr.type=unix,addr.path={tmp_path}/v.sock"
        async with Daemon(
            objects=["iothread,id=i,poll-max-ns=0", "throttle-group,id=g,x-iops-total=5"],
            blockdevs=blockdevs,
            exports=[f"vhost-user-blk,id=e,node-name=t,{address},x-vhostblk-serial=s"],
        ) as daemon:
            daemon.objects["i"].write("poll-max-ns", 7)
            first = described(daemon)
        objects, nodes, exports = first
        assert objects[0]["poll-max-ns"] == 7
        assert objects[1]["limits"]["iops-total"] == 5
        async with Daemon(objects=objects, blockdevs=nodes, exports=exports) as daemon:
            assert described(daemon) == first

    asyncio.run(main())


def test_children_come_first() -> None:
    """Also where an older node has got a younger child."""

    async def main() -> None:
        blockdevs = [f"{NULL}a", "raw,node-name=r,file=a", f"{NULL}b"]
        async with Daemon(blockdevs=blockdevs) as daemon:
            await daemon.graph.reopen([blockdev_options("raw,node-name=r,file=b")])
            names = [blockdev["node-name"] for blockdev in configuration.blockdevs(daemon)]
            assert names.index("b") < names.index("r")

    asyncio.run(main())


async def _inactive(daemon: Daemon) -> None:
    await daemon.graph.set_active("n", active=False)


async def _threshold(daemon: Daemon) -> None:
    await daemon.graph.set_write_threshold(daemon.graph.find("n"), 4096)


async def _user(daemon: Daemon) -> None:
    BlockBackend("job", Perm.CONSISTENT_READ).attach(daemon.graph, daemon.graph.find("n"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_inactive, "node 'n' is inactive"),
        (_threshold, "node 'n' has a write threshold"),
        (_user, "block device 'job' uses node 'n'"),
    ],
)
def test_what_options_dont_say(change: Callable[[Daemon], Awaitable[None]], reason: str) -> None:
    async def main() -> None:
        async with Daemon(blockdevs=[f"{NULL}n"]) as daemon:
            await change(daemon)
            with pytest.raises(HandoverError, match=reason):
                configuration.blockdevs(daemon)
            for backend in daemon.graph.backends:
                await backend.detach()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("top", "reason"),
    [
        ("copy-before-write,node-name=n,file=a,target=b", "keeps its snapshot's state in memory"),
        ("blklogwrites,node-name=n,file=a,log=b", "keeps the end of its log in memory"),
    ],
)
def test_what_filters_know_and_their_options_dont_say(top: str, reason: str) -> None:
    async def main() -> None:
        async with Daemon(blockdevs=[f"{NULL}a", f"{NULL}b", top]) as daemon:
            with pytest.raises(HandoverError, match=f"node 'n' {reason}"):
                configuration.blockdevs(daemon)

    asyncio.run(main())


def test_a_node_that_nobody_added(tmp_path: Path) -> None:
    """What `blockdev-snapshot-sync` makes: it could not be opened again, here or there."""

    async def main() -> None:
        export = f"vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={tmp_path}/v.sock"
        async with Daemon(blockdevs=[f"{NULL}n"], exports=[export]) as daemon:
            action = NewOverlayAction(
                daemon.graph,
                daemon.graph.find("n"),
                str(tmp_path / "overlay"),
                driver="qcow2",
                node_name="o",
                create=True,
            )
            await perform(daemon.graph, [action])
            with pytest.raises(HandoverError, match="node 'o' was not added by 'blockdev-add'"):
                configuration.blockdevs(daemon)

    asyncio.run(main())


def test_zones_that_are_nowhere_but_in_memory() -> None:
    async def main() -> None:
        zoned = "x-vhostblk-zoned.zone-size=64K"
        async with Daemon(blockdevs=[f"{NULL}n,{zoned}", "raw,node-name=r,file=n"]) as daemon:
            with pytest.raises(HandoverError, match="node 'n' keeps its zones in memory"):
                configuration.blockdevs(daemon)

    asyncio.run(main())

# SPDX-License-Identifier: Apache-2.0
"""The Python API."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest

import vhostblk
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.permissions import Perm
from vhostblk.errors import VhostblkError
from vhostblk.exports import registry
from vhostblk.exports.base import Export
from vhostblk.exports.vhost_user_blk.hint import qemu_arguments
from vhostblk.schema.exports.vhost_user_blk import BlockExportOptionsVhostUserBlk

NODE = "null-co,node-name=n,size=1048576"


def export(name: str, **members: object) -> dict[str, object]:
    addr = {"type": "unix", "path": f"/nonexistent/{name}"}
    return {"type": "vhost-user-blk", "id": name, "node-name": "n", "addr": addr, **members}


class StubExport(Export):
    """Records what is done to it."""

    options_type = BlockExportOptionsVhostUserBlk
    events: ClassVar[list[str]] = []
    fails_to_start = False
    fails_to_stop: ClassVar[set[str]] = set()

    @classmethod
    def connect_hint(cls, options: Any) -> list[str] | None:
        return qemu_arguments(options)

    async def start(self, carried: Any = None, *, movable: bool = False) -> None:
        self.events.append(f"start {self.id}")
        if self.fails_to_start:
            raise VhostblkError("no")

    async def stop(self) -> None:
        self.events.append(f"stop {self.id}")
        if self.id in self.fails_to_stop:
            raise VhostblkError(f"{self.id} did not stop")


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> type[StubExport]:
    monkeypatch.setattr(StubExport, "events", [])
    monkeypatch.setattr(registry, "export_class", lambda _: StubExport)
    return StubExport


def test_it_is_built_in_order_and_closed_in_reverse(stub: type[StubExport]) -> None:
    async def main() -> None:
        daemon = vhostblk.Daemon(
            objects=["iothread,id=io"],
            blockdevs=[NODE],
            exports=[export("a", iothread="io"), export("b")],
        )
        async with daemon:
            assert list(daemon.exports) == ["a", "b"]
            assert list(daemon.objects) == ["io"]
            assert [node.node_name for node in daemon.graph] == ["n"]
        assert list(daemon.graph) == []
        assert not daemon.exports

    asyncio.run(main())
    assert stub.events == ["start a", "start b", "stop b", "stop a"]


def test_a_failure_while_entering_takes_everything_back(stub: type[StubExport]) -> None:
    async def main() -> None:
        exports = [export("a"), export("a")]
        with pytest.raises(BlockError, match="Block export id 'a' is already in use"):
            async with vhostblk.Daemon(blockdevs=[NODE], exports=exports):
                raise AssertionError

    asyncio.run(main())
    assert stub.events == ["start a", "stop a"]


def test_an_export_that_does_not_start_lets_go_of_its_node(
    stub: type[StubExport], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with vhostblk.Daemon(blockdevs=[NODE]) as daemon:
            monkeypatch.setattr(stub, "fails_to_start", True)
            with pytest.raises(VhostblkError, match=r"^no$"):
                await daemon.add_export(export("a"))
            assert not daemon.exports
            await daemon.remove_blockdev("n")

    asyncio.run(main())


def test_one_failure_does_not_keep_the_rest_open(
    stub: type[StubExport], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stub, "fails_to_stop", {"b", "c"})

    async def main() -> None:
        exports = [export("a"), export("b"), export("c")]
        daemon = await vhostblk.Daemon(blockdevs=[NODE], exports=exports).__aenter__()
        with pytest.raises(VhostblkError, match="c did not stop"):
            await daemon.close()
        assert list(daemon.graph) == []

    asyncio.run(main())
    assert stub.events[3:] == ["stop c", "stop b", "stop a"]
    assert [record.getMessage() for record in caplog.records] == ["while closing: b did not stop"]


@pytest.mark.parametrize(
    ("members", "perm", "outside"),
    [
        ({}, Perm.CONSISTENT_READ, Perm.ALL),
        (
            {"writable": True},
            Perm.CONSISTENT_READ | Perm.WRITE,
            Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED,
        ),
        (
            {"writable": True, "x-vhostblk-share-rw": True},
            Perm.CONSISTENT_READ | Perm.WRITE,
            Perm.ALL,
        ),
    ],
)
def test_permissions(members: dict[str, object], perm: Perm, outside: Perm) -> None:
    async def main() -> None:
        async with vhostblk.Daemon(blockdevs=[NODE]) as daemon:
            backend = (await daemon.add_export(export("a", **members))).backend
            assert backend.perm == perm
            assert backend.shared == Perm.ALL
            assert backend.shared_outside == outside

    asyncio.run(main())


@pytest.mark.parametrize("writethrough", [False, True])
def test_writethrough_is_no_write_cache(writethrough: bool) -> None:
    async def main() -> None:
        async with vhostblk.Daemon(blockdevs=[NODE]) as daemon:
            running = await daemon.add_export(export("a", writethrough=writethrough))
            assert running.backend.enable_write_cache is not writethrough

    asyncio.run(main())


def test_an_export_can_be_removed(stub: type[StubExport]) -> None:
    async def main() -> None:
        async with vhostblk.Daemon(blockdevs=[NODE], exports=[export("a")]) as daemon:
            with pytest.raises(BlockError, match="Node n is in use"):
                await daemon.remove_blockdev("n")
            assert list(daemon.connect_hints()) == ["a"]
            await daemon.remove_export("a")
            assert daemon.connect_hints() == {}
            await daemon.remove_blockdev("n")
            with pytest.raises(BlockError, match="Export 'a' is not found"):
                await daemon.remove_export("a")

    asyncio.run(main())
    assert stub.events == ["start a", "stop a"]


def test_hints_double_commas() -> None:
    async def main() -> None:
        async with vhostblk.Daemon(blockdevs=[NODE], exports=[export("a,b", id="a")]) as daemon:
            assert "socket,id=a,path=/nonexistent/a,,b" in daemon.connect_hints()["a"]

    asyncio.run(main())

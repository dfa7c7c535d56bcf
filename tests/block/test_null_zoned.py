# SPDX-License-Identifier: Apache-2.0
"""Zoned null disks: their options, what writes to them, and who may be above them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.block.support import RW, options, run, write_bytes
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.iovec import IoVec
from vhostblk.block.zones import ZoneError, ZoneFault, ZoneOp, ZoneState, zone_limits

MIB = 1 << 20
ZONE = {"zone-size": MIB}


async def add(graph: Graph, driver: str = "null-co", **zoned: Any) -> None:
    zones = {name.replace("_", "-"): value for name, value in zoned.items()}
    await graph.add(
        options(driver=driver, node_name="disk", size=8 * MIB, x_vhostblk_zoned=ZONE | zones)
    )


def attach(graph: Graph, name: str, perm: Perm = RW) -> BlockBackend:
    backend = BlockBackend("test", perm)
    backend.attach(graph, graph.find(name))
    return backend


@pytest.mark.parametrize(
    ("zoned", "message"),
    [
        ({"zone_size": 0}, "zone-size must be between 1 and"),
        ({"zone_size": MIB + 1}, "zone-size must be a multiple of write-granularity"),
        ({"zone_size": 1 << 42}, "zone-size must be between 1 and"),
        ({"zone_size": 512, "write_granularity": 1024}, "zone-size must be a multiple"),
        ({"zone_size": 4096, "write_granularity": 3000}, "write-granularity must be a power"),
        ({"write_granularity": 256}, "write-granularity must be a power of two"),
        ({"zone_capacity": 2 * MIB}, "zone-capacity must be between 1 and zone-size"),
        ({"zone_capacity": 0}, "zone-capacity must be between 1 and zone-size"),
        ({"zone_capacity": 4096, "max_append_bytes": 8192}, "max-append-bytes must be between"),
        ({"max_append_bytes": 100}, "max-append-bytes must be a multiple"),
        ({"conventional_zones": 9}, r"conventional-zones must not exceed .* \(8\)"),
        ({"max_open_zones": 3, "max_active_zones": 2}, "max-open-zones must not exceed"),
        ({"offline_zones": [8]}, "zone 8 is not a sequential zone"),
        ({"conventional_zones": 2, "read_only_zones": [1]}, "zone 1 is not a sequential zone"),
    ],
)
def test_options_that_make_no_sense(zoned: dict[str, Any], message: str) -> None:
    async def main() -> None:
        graph = Graph()
        with pytest.raises(BlockError, match=f"x-vhostblk-zoned: {message}"):
            await add(graph, **zoned)
        assert list(graph) == []

    run(main)


def test_too_many_zones() -> None:
    async def main() -> None:
        zoned = {"zone-size": 512}
        definition = options(driver="null-co", node_name="d", size=1 << 28, x_vhostblk_zoned=zoned)
        with pytest.raises(BlockError, match=r"524288.* exceeds 262144"):
            await Graph().add(definition)

    run(main)


@pytest.mark.parametrize("driver", ["null-co", "null-aio"])
def test_requests_reach_the_zones_through_raw(driver: str) -> None:
    async def main() -> None:
        graph = Graph()
        await add(graph, driver)
        await graph.add(options(driver="raw", node_name="raw", file="disk"))
        backend = attach(graph, "raw")
        assert zone_limits(backend.node) is not None
        assert backend.extent_map() is None
        await write_bytes(backend, 0, bytes(4096))
        with pytest.raises(ZoneError) as caught:
            await write_bytes(backend, 0, bytes(4096))
        assert caught.value.fault is ZoneFault.UNALIGNED
        await backend.pwrite_zeroes(4096, 4096)
        assert await backend.zone_append(0, IoVec.allocate(512)) == 8192
        (zone,) = await backend.zone_report(100, 1)
        assert (zone.write_pointer, zone.state) == (8704, ZoneState.IMPLICIT_OPEN)
        await backend.zone_mgmt(ZoneOp.RESET, 0, MIB)
        (zone,) = await backend.zone_report(0, 1)
        assert (zone.write_pointer, zone.state) == (0, ZoneState.EMPTY)
        await backend.detach()
        await graph.close()

    run(main)


def test_who_may_not_write_may_not_manage() -> None:
    async def main() -> None:
        graph = Graph()
        await add(graph)
        backend = attach(graph, "disk", Perm.CONSISTENT_READ)
        for coroutine in (
            backend.zone_mgmt(ZoneOp.RESET_ALL, 0, 8 * MIB),
            backend.zone_append(0, IoVec.allocate(512)),
        ):
            with pytest.raises(PermissionError):
                await coroutine
        assert len(await backend.zone_report(0, 99)) == 8
        await backend.detach()
        await graph.close()

    run(main)


def test_changes_are_noted() -> None:
    async def main() -> None:
        graph = Graph()
        await add(graph)
        backend, node = attach(graph, "disk"), graph.find("disk")
        changes: list[tuple[int, int]] = []
        node.record_change = lambda *change: changes.append(change)  # type: ignore[method-assign]
        await backend.zone_append(MIB, IoVec.allocate(1024))
        await backend.zone_append(MIB, IoVec.allocate(512))
        await backend.zone_mgmt(ZoneOp.RESET, MIB, MIB)
        assert changes == [(MIB, 1024), (MIB + 1024, 512), (MIB, MIB)]
        assert node.write_generation == 3
        await backend.detach()
        await graph.close()

    run(main)


@pytest.mark.parametrize(
    "parent",
    [
        {"driver": "copy-on-read", "file": "disk"},
        {"driver": "raw", "file": "disk", "size": MIB},
        {"driver": "quorum", "children": ["disk"], "vote-threshold": 1},
    ],
    ids=["filter", "window", "quorum"],
)
def test_nobody_above_who_writes_as_he_pleases(parent: dict[str, Any]) -> None:
    async def main() -> None:
        graph = Graph()
        await add(graph)
        with pytest.raises(BlockError, match="Cannot add zoned child 'disk' to 'above'"):
            await graph.add(options(**parent, node_name="above"))
        await graph.add(options(driver="raw", node_name="raw", file="disk"))
        with pytest.raises(BlockError, match="Cannot add zoned child 'disk' to 'raw'"):
            await graph.reopen([options(driver="raw", node_name="raw", file="disk", size=MIB)])
        assert graph.find("raw").size == 8 * MIB
        await graph.close()

    run(main)


def test_a_zoned_disk_can_not_take_the_place_of_another() -> None:
    async def main() -> None:
        graph = Graph()
        await add(graph)
        await graph.add(options(driver="null-co", node_name="plain", size=8 * MIB))
        await graph.add(options(driver="raw", node_name="above", size=MIB, file="plain"))
        with pytest.raises(BlockError, match="Cannot add zoned child 'disk' to 'above'"):
            await graph.reopen([options(driver="raw", node_name="above", size=MIB, file="disk")])
        await graph.close()

    run(main)


def test_other_disks_have_no_zones() -> None:
    async def main() -> None:
        graph = Graph()
        await graph.add(options(driver="null-co", node_name="disk", size=8 * MIB))
        backend = attach(graph, "disk")
        assert zone_limits(backend.node) is None
        for coroutine in (
            backend.zone_mgmt(ZoneOp.RESET_ALL, 0, 8 * MIB),
            backend.zone_append(0, IoVec.allocate(512)),
            backend.zone_report(0, 1),
        ):
            with pytest.raises(OSError, match="not supported"):
                await coroutine
        await backend.detach()
        await graph.close()

    run(main)

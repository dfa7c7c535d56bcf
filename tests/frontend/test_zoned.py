# SPDX-License-Identifier: Apache-2.0
"""A zoned disk of a daemon, to a driver that knows zones and to one that doesn't, on both lanes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.frontend.blk import FEATURES, PACKED_FEATURES, BlkDriver, RequestError
from tests.frontend.launch import Daemon, Program
from tests.virtio_blk.lanes import lane
from vhostblk.virtio_blk.features import Feature
from vhostblk.virtio_blk.layout import ZONE_DESCRIPTOR, RequestType, Status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.frontend.memory import Memory

__all__ = ["lane"]

pytestmark = pytest.mark.usefixtures("lane")

MIB = 1 << 20
NODE = f"driver=null-co,node-name=disk,size={8 * MIB},x-vhostblk-zoned.zone-size=1M"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(Program.VHOSTBLK, tmp_path, [NODE], "id=e,node-name=disk,writable=on") as daemon:
        yield daemon


@pytest.mark.parametrize("features", [FEATURES, PACKED_FEATURES], ids=["split", "packed"])
def test_appends_at_depth(daemon: Daemon, memory: Memory, features: int) -> None:
    zoned = features | Feature.ZONED.mask
    with BlkDriver(daemon.connect(), memory, features=zoned) as driver:
        assert driver.has(Feature.ZONED)
        assert not driver.has(Feature.DISCARD)
        for _ in range(16):
            driver.submit(RequestType.ZONE_APPEND, MIB, data_out=[bytes(1024)], data_in=[8])
        done = driver.drain()
        assert {(request.status, request.used_length) for request, _ in done} == {(Status.OK, 9)}
        places = sorted(int.from_bytes(data, "little") for _, data in done)
        assert places == [MIB // 512 + 2 * number for number in range(16)]
        report = driver.run(RequestType.ZONE_REPORT, MIB, data_in=[64 + 64])
        (zone,) = np.frombuffer(report, ZONE_DESCRIPTOR, offset=64)
        assert zone["z_wp"] == (MIB + 16 * 1024) // 512
        driver.run(RequestType.ZONE_RESET, MIB)


def test_a_driver_that_knows_no_zones(daemon: Daemon, memory: Memory) -> None:
    with BlkDriver(daemon.connect(), memory) as driver:
        assert not driver.has(Feature.ZONED)
        driver.write(0, bytes(512))
        with pytest.raises(RequestError, match="status 1"):
            driver.write(MIB + 512, bytes(512))
        with pytest.raises(RequestError, match="status 2"):
            driver.run(RequestType.ZONE_RESET, MIB)

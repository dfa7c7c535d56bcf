# SPDX-License-Identifier: Apache-2.0
"""A zoned disk with drivers that support zones and drivers that don't, in both lanes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.frontend.blk import FEATURES, PACKED_FEATURES, BlkDriver, range_segments
from tests.frontend.launch import Daemon, Program
from tests.frontend.layout.vhost_user import F_PROTOCOL_FEATURES
from tests.frontend.layout.virtio_blk import ZONE_DESCRIPTOR, Feature, RequestType, Status
from tests.virtio_blk.lanes import lane

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
    """Such a driver, for example firmware, is refused; the next driver is served."""
    with BlkDriver(daemon.connect(), memory) as driver:
        assert not driver.has(Feature.ZONED)
        driver.connection.set_status(0xB)
        assert driver.connection.get_status() == 0x3
        segment = range_segments([(0, 512)])
        for kind, out, into in (
            (RequestType.IN, [], [512]),
            (RequestType.OUT, [bytes(512)], []),
            (RequestType.FLUSH, [], []),
            (RequestType.WRITE_ZEROES, [segment], []),
            (RequestType.ZONE_RESET, [], []),
            (RequestType.ZONE_REPORT, [], [128]),
        ):
            driver.submit(kind, data_out=out, data_in=into)
        assert {request.status for request, _ in driver.drain()} == {Status.IOERR}
        assert driver.get_id()
        driver.connection.set_status(0)
        zoned = driver.features | Feature.ZONED.mask
        driver.connection.set_features(zoned | F_PROTOCOL_FEATURES)
        driver.connection.set_status(0xB)
        assert driver.connection.get_status() == 0xB
        driver.rings[0].attach(driver.connection, 0, base=int(driver.rings[0].used_idx[0]))
        report = driver.run(RequestType.ZONE_REPORT, 0, data_in=[64 + 64])
        assert np.frombuffer(report, ZONE_DESCRIPTOR, offset=64)["z_start"] == [0]
        driver.write(MIB, bytes(512))
    output = daemon.output()
    assert output.count("the driver didn't accept ZONED") == 2
    assert "SET_STATUS: FEATURES_OK refused" in output
    assert "queue 0: requests fail" in output

# SPDX-License-Identifier: Apache-2.0
"""Runs tests on both lanes: what uses a queue can't tell them apart."""

from __future__ import annotations

import pytest

from vhostblk.engine import load
from vhostblk.virtio_blk.lane import Lane


@pytest.fixture(params=list(Lane), ids=lambda lane: lane.value)
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Lane:
    """Force a lane."""
    lane = Lane(request.param)
    if lane is Lane.EXPRESS and load() is None:
        pytest.skip("no compiled engine")
    monkeypatch.setenv("VHOSTBLK_LANE", lane.value)
    return lane

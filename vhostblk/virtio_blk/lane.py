# SPDX-License-Identifier: Apache-2.0
"""The two lanes that serve a queue, and which one an export begins with."""

from __future__ import annotations

import os
from enum import Enum

from vhostblk.engine import load
from vhostblk.errors import VhostblkError


class Lane(Enum):
    """Who runs a queue."""

    #: The event loop: `vhostblk.virtio_blk.queue`.
    PYTHON = "python"
    #: The compiled engine: `vhostblk.virtio_blk.express`.
    EXPRESS = "express"


def choose_lane() -> Lane:
    """Return the lane that `VHOSTBLK_LANE` forces, else the express lane where there is an engine.

    Raises VhostblkError where the express lane is forced and can't be had.
    """
    forced = os.environ.get("VHOSTBLK_LANE", "")
    if forced not in ("", *(lane.value for lane in Lane)):
        raise VhostblkError(f"VHOSTBLK_LANE is '{forced}', not 'python' or 'express'")
    if forced == Lane.PYTHON.value:
        return Lane.PYTHON
    if load() is not None:
        return Lane.EXPRESS
    if forced:
        raise VhostblkError("VHOSTBLK_LANE=express, but there is no compiled engine")
    return Lane.PYTHON

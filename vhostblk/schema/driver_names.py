# SPDX-License-Identifier: Apache-2.0
"""Names of QEMU's drivers, whether or not there is such a driver here.

They are for what names a format without opening it; drivers of plug-ins are not among them.
"""

from __future__ import annotations

from enum import Enum

from vhostblk.schema.driver_manifest import DRIVERS


class BlockdevDriver(Enum):
    """`BlockdevDriver`: a member for each driver of the table."""

    _ignore_ = "_name"
    for _name in DRIVERS:
        vars()[_name.replace("-", "_").upper()] = _name

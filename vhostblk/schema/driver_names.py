# SPDX-License-Identifier: Apache-2.0
"""Names of QEMU's drivers, including those that are not available here.

Options that name a format without opening it use them. Drivers of plug-ins are not included.
"""

from __future__ import annotations

from enum import Enum

from vhostblk.schema.driver_manifest import DRIVERS


class BlockdevDriver(Enum):
    """`BlockdevDriver`: a member for each driver of the table."""

    _ignore_ = "_name"
    for _name in DRIVERS:
        vars()[_name.replace("-", "_").upper()] = _name

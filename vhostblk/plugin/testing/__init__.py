# SPDX-License-Identifier: Apache-2.0
"""Tests for drivers, for pytest (with `hypothesis`; `pip install 'vhostblk[test]'`).

    from vhostblk.plugin.testing import DriverTests

    class TestMyDriver(DriverTests):
        driver = MyDriver

        def make_options(self, directory):
            return {"filename": str(directory / "disk")}

The driver runs as in the daemon, below the layer that aligns and splits requests, so a test can
send any request that a virtual machine can send. `DriverTests` has further attributes that describe
a driver.
"""

from __future__ import annotations

from vhostblk.plugin.testing.disk import Disk, opened
from vhostblk.plugin.testing.kit import DriverTests

__all__ = ["Disk", "DriverTests", "opened"]

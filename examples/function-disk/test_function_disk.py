# SPDX-License-Identifier: Apache-2.0
"""The function disk against vhostblk's kit for drivers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from function_disk import BOOT, FunctionDriver

from vhostblk.plugin.testing import DriverTests

if TYPE_CHECKING:
    from pathlib import Path


class TestFunctionDisk(DriverTests):
    driver = FunctionDriver
    refused = (({"size": 1000}, "not a size in whole sectors"),)

    def make_options(self, directory: Path) -> dict[str, Any]:
        return {"size": 1 << 20, "message": "hi"}

    def expected(self, offset: int, length: int) -> bytes:
        first = (BOOT + b"hi").ljust(510, b"\0") + b"\x55\xaa"
        rest = (b"sector %d\n" % number for number in range(1, 1 << 11))
        whole = first + b"".join(line.ljust(512, b".") for line in rest)
        return whole[offset : offset + length]

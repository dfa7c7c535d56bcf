# SPDX-License-Identifier: Apache-2.0
"""A host-managed disk behind QEMU, whose vhost-user-blk passes no ZONED on to its guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from integration.guest.machine import Machine, VhostUserDisk
from integration.guest.server import Program, Server

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("vhostblk_only")

NODE = "driver=null-co,node-name=disk,size=16777216,read-zeroes=on,x-vhostblk-zoned.zone-size=4M"
REASON = "the driver didn't accept ZONED, as it has to for a host-managed disk"


@pytest.mark.parametrize("lane", ["express", "python"])
def test_a_guest_that_is_not_told_of_zones_gets_errors_and_no_hang(
    directory: Path, lane: str
) -> None:
    address = f"addr.type=unix,addr.path={directory}/v.sock"
    export = f"vhost-user-blk,id=export,node-name=disk,writable=on,{address}"
    arguments = ["--blockdev", NODE, "--export", export]
    server = Server(Program.VHOSTBLK, arguments, directory, environment={"VHOSTBLK_LANE": lane})
    server.expected_log = REASON
    with server, Machine(directory, VhostUserDisk(directory / "v.sock")) as guest:
        for words in ("if=/dev/vda of=/dev/null", "if=/dev/zero of=/dev/vda conv=fsync"):
            said = guest.run(f"dd {words} bs=4k count=1 2>&1 && echo done || true")
            assert "done" not in said, words
            assert "error" in said, words
        assert guest.run("blockdev --getsz /dev/vda") == "32768"
        guest.power_off()
    log = server.log()
    assert f"queue 0: requests fail: {REASON}" in log
    assert f"SET_STATUS: FEATURES_OK refused: {REASON}" in log

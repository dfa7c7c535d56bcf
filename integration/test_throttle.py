# SPDX-License-Identifier: Apache-2.0
"""A guest's disk is throttled, has its limits changed, and is let go, while the guest works."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from integration.guest import image
from integration.guest.machine import Machine, VhostUserDisk
from integration.guest.server import Export
from integration.test_qmp import END_WORK, SIZE, WORK, Script, serving

if TYPE_CHECKING:
    from pathlib import Path

    from integration.guest.server import Program

#: Bytes a second, and how many the guest reads.
RATE = image.MIB
AMOUNT = 4 * image.MIB

READ = f"echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda of=/dev/null bs=64k count={AMOUNT >> 16}"


def test_limits_change_while_the_guest_works(program: Program, directory: Path) -> None:
    disk = image.create(directory / "disk.img", SIZE)
    attached = VhostUserDisk(directory / "v.sock")
    throttle = {"driver": "throttle", "node_name": "t", "file": "file"}
    with serving(program, Export(disk), directory) as (_, monitor):
        with Machine(directory, attached) as guest:
            guest.run(WORK, "start work")
            script = Script(monitor, guest)
            script.run("object-add", qom_type="throttle-group", id="g", limits={"iops-total": 200})
            script.run("object-add", qom_type="throttle-group", id="h")
            script.run("blockdev-add", throttle_group="g", **throttle)
            put(script, "t")
            script.refuse("object-del", "is in use", id="g")
            for limits in (
                {"iops-total": 0, "bps-total": RATE},
                {"bps-total-max": 4 * RATE, "bps-total-max-length": 2},
                {"bps-total": 0, "bps-total-max": 0, "bps-total-max-length": 1},
                {"iops-read": 300, "iops-write": 100, "iops-size": 4096},
                {"iops-read": 0, "iops-write": 0, "iops-size": 0, "bps-total": RATE},
            ):
                script.run("qom-set", path="g", property="limits", value=limits)
            begin = time.monotonic()
            guest.run(READ, "read at the limit")
            # A tenth of a second's worth goes at once.
            assert time.monotonic() - begin >= AMOUNT / RATE - 0.2
            script.run("blockdev-reopen", options=[wire(throttle, "h")])
            script.run("object-del", id="g")
            put(script, "file")
            script.run("blockdev-del", node_name="t")
            script.run("object-del", id="h")
            guest.run(END_WORK, "end work")
            guest.power_off()


def wire(node: dict[str, str], group: str) -> dict[str, str]:
    """Return a definition as it is on the wire."""
    named = {name.replace("_", "-"): value for name, value in node.items()}
    return {**named, "throttle-group": group}


def put(script: Script, below: str) -> None:
    """Have the guest's disk lie on another node."""
    script.run("blockdev-reopen", options=[{"driver": "raw", "node-name": "disk", "file": below}])

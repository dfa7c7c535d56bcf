# SPDX-License-Identifier: Apache-2.0
"""New daemons take over, one from the other, under verified I/O of a guest: it sees a pause.

QEMU's chardev doesn't reconnect: the connection itself has to live on.
`pytest integration/test_handover.py --handovers=100` is the long form.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest

from benchmarks.guest_fio import GUEST_MEMORY, FioMachine
from integration.guest import image
from integration.guest.machine import VhostUserDisk
from integration.guest.server import Export, Program, serve
from integration.test_crash import FIO

if TYPE_CHECKING:
    from pathlib import Path

#: Longest time of work between two hand-overs.
MAX_WORK = 0.5
#: About the time from one hand-over to the next.
PERIOD = 1.5


@pytest.mark.usefixtures("vhostblk_only")
@pytest.mark.parametrize("lane", ["express", "python"])
def test_guest_sees_a_pause_when_a_new_daemon_takes_over(
    directory: Path, handovers: int, lane: str
) -> None:
    disk = image.create(directory / "disk.img", 48 * image.MIB)
    attached = VhostUserDisk(directory / "v.sock", queues=2)
    rng = random.Random(lane)
    server = serve(Program.VHOSTBLK, Export(disk, queues=2, node="cache.direct=on"), directory)
    server.environment["VHOSTBLK_LANE"] = lane
    socket = str(directory / "handover")
    server.arguments += ["--takeover", socket, "--handover", socket]
    seconds = int(handovers * PERIOD) + 4
    with server, FioMachine(directory, attached, cpus=2, memory=GUEST_MEMORY) as guest:
        with image.written(disk):
            guest.run_in_background(FIO.format(seconds=seconds), "fio")
        for _ in range(handovers):
            time.sleep(rng.uniform(0, MAX_WORK))
            server.replace()
        output = guest.finish(seconds + 120).output
        assert "err= 0" in output, output
        assert guest.run("dmesg | grep -c 'I/O error' || true") == "0"
        guest.power_off()

# SPDX-License-Identifier: Apache-2.0
"""The daemon is killed, again and again, under verified I/O of a guest: the guest sees a pause.

fio in the guest writes blocks with checksums at depth 32 and reads them back. Each new daemon
process has to do what the last one left undone. `pytest integration/test_crash.py --kills=100` is
the long form.
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from benchmarks.guest_fio import GUEST_MEMORY, FioMachine
from integration.guest import image
from integration.guest.errors import HarnessError
from integration.guest.machine import VhostUserDisk
from integration.guest.server import Export, Program, Server, serve

#: QEMU looks for the daemon once a second.
RECONNECT = 1
#: Longest time of work between reconnection and kill.
MAX_WORK = 0.8
#: About the longest time from one kill to the next.
PERIOD = 3.0

#: Feature bit 34, RING_PACKED.
RINGS = "cut -c35 /sys/block/vda/device/features"

FIO = """
fio --name=kill --filename=/dev/vda --size=24m --rw=randwrite --bs=4k --direct=1 \
    --ioengine=libaio --iodepth=32 --numjobs=2 --offset_increment=24m --group_reporting \
    --verify=crc32c --verify_fatal=1 --verify_backlog=256 \
    --time_based --runtime={seconds}
"""


def start_again(server: Server) -> None:
    """Start; the kernel may keep the image locked until the last process's requests are done."""
    deadline = time.monotonic() + 10
    while True:
        try:
            server.start()
        except HarnessError as error:
            if "lock" not in str(error) or time.monotonic() > deadline:
                raise
        else:
            return


def wait_connected(server: Server) -> None:
    """Wait until the daemon has the guest's memory.

    QEMU 7.2 was seen never to come back from a connection that ends before its first answer, so the
    daemon isn't killed there.
    """
    maps = Path(f"/proc/{server.pid}/maps")
    deadline = time.monotonic() + 30
    while "memfd:" not in maps.read_text():
        assert time.monotonic() < deadline, "QEMU doesn't connect"
        time.sleep(0.01)


@pytest.mark.usefixtures("vhostblk_only")
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("lane", ["express", "python"])
def test_guest_sees_a_pause_when_the_daemon_is_killed(
    directory: Path, kills: int, lane: str, packed: bool
) -> None:
    disk = image.create(directory / "disk.img", 48 * image.MIB)
    attached = VhostUserDisk(directory / "v.sock", queues=2, reconnect=RECONNECT, packed=packed)
    rng = random.Random(lane)
    server = serve(Program.VHOSTBLK, Export(disk, queues=2, node="cache.direct=on"), directory)
    server.environment["VHOSTBLK_LANE"] = lane
    server.expected_log = "lock"
    seconds = int(kills * PERIOD) + 4
    with server, FioMachine(directory, attached, cpus=2, memory=GUEST_MEMORY) as guest:
        assert guest.run(RINGS) == str(int(packed))
        with image.written(disk):
            guest.run_in_background(FIO.format(seconds=seconds), "fio")
        for _ in range(kills):
            wait_connected(server)
            time.sleep(rng.uniform(0, MAX_WORK))
            assert server.stop(signal.SIGKILL) == -signal.SIGKILL
            start_again(server)
        output = guest.finish(seconds + 120).output
        assert "err= 0" in output, output
        assert guest.run("dmesg | grep -c 'I/O error' || true") == "0"
        guest.power_off()

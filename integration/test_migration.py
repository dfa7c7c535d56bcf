# SPDX-License-Identifier: Apache-2.0
"""A guest moves between two QEMUs, each with a daemon of its own, on one image, under verified I/O.

fio in the guest writes blocks with checksums and reads them back all the while. Nobody tells the
daemons anything: each has the image while the guest is there. In pre-copy the guest's memory goes
first; in post-copy, the guest does. `pytest integration/test_migration.py --migrations=20
--timeout=1200` is the long form.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from benchmarks.guest_fio import GUEST_MEMORY, FioMachine
from integration.guest import image
from integration.guest.errors import GuestError
from integration.guest.machine import VhostUserDisk
from integration.guest.server import Export, Program, Server, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIO = """
fio --name=move --filename=/dev/vda --size=24m --rw=randwrite --bs=4k --direct=1 \
    --ioengine=libaio --iodepth=32 --numjobs=2 --offset_increment=24m --group_reporting \
    --verify=crc32c --verify_fatal=1 --verify_backlog=256 --time_based --runtime={seconds}
"""

#: Seconds of I/O for each migration.
SECONDS = 3


def daemon(program: Program, disk: Path, directory: Path, lane: str) -> Server:
    """Serve the image; vhostblk leaves it to others while no guest is there."""
    if program is Program.QEMU:  # which lets others write a raw image at any time
        return serve(program, Export(disk, queues=2), directory)
    address = f"addr.type=unix,addr.path={directory}/v.sock"
    export = f"--{address},writable=on,num-queues=2,allow-inactive=on"
    return Server(program, [str(disk), export], directory, environment={"VHOSTBLK_LANE": lane})


@pytest.mark.parametrize("postcopy", [False, True], ids=["precopy", "postcopy"])
@pytest.mark.parametrize("lane", ["express", "python"])
def test_guest_moves_there_and_back(
    directory: Path, program: Program, migrations: int, lane: str, postcopy: bool
) -> None:
    if postcopy and program is Program.QEMU:
        # libvhost-user (10.0): "ADD_MEM_REG received 0 fds"
        pytest.skip("QEMU's daemon takes the confirmation of a memory region for a region")
    disk = image.create(directory / "disk.img", 48 * image.MIB)
    homes = [directory / "a", directory / "b"]
    with ExitStack() as stack:
        servers = [stack.enter_context(daemon(program, disk, home, lane)) for home in homes]
        guest = stack.enter_context(machine(directory / "guest0", homes[0]))
        for number in range(1, migrations + 1):
            target = stack.enter_context(
                machine(directory / f"guest{number}", homes[number % 2], incoming=True)
            )
            with image.written(disk):
                guest.run_in_background(FIO.format(seconds=SECONDS), "fio")
            guest.migrate(target, postcopy=postcopy)
            guest = target
            with explained(servers[number % 2], number):
                output = guest.finish().output
                assert "err= 0" in output, output
                # That may have ended before the move did; this is certainly here.
                assert "err= 0" in guest.run(FIO.format(seconds=1))
        assert guest.run("dmesg | grep -c 'I/O error' || true") == "0"
        guest.power_off()


@contextmanager
def explained(server: Server, number: int) -> Iterator[None]:
    """Add to the failure of a guest's step what its daemon has done, and what not."""
    try:
        yield
    except GuestError as error:
        former, deadline = server.log(), time.monotonic() + 10
        os.kill(server.pid, signal.SIGUSR1)
        while server.log() == former and server.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        raise GuestError(f"after migration {number}: {error}{server.log()}") from error


def machine(directory: Path, home: Path, *, incoming: bool = False) -> FioMachine:
    disk = VhostUserDisk(home / "v.sock", queues=2)
    return FioMachine(directory, disk, cpus=2, memory=GUEST_MEMORY, incoming=incoming)

# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a QEMU guest makes a file system on a disk that vhostblk serves, and reads it back.

Everything happens in `demo/`, which stays behind to be looked at: the image, and the logs of the
daemon, of QEMU and of the guest's console.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from integration.guest import image
from integration.guest.errors import GuestError, HarnessError
from integration.guest.machine import QEMU, Machine, VhostUserDisk
from integration.guest.server import Program, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
#: Relative, so that the socket's path is short wherever the source tree is.
DIRECTORY = Path("demo")
SIZE = 64 * image.MIB
QUEUES = 2
STEPS = 6


class Narrator:
    """Says what happens: numbered steps, commands, and what they answered."""

    def __init__(self) -> None:
        self._step = 0
        self._began = time.monotonic()

    def step(self, text: str) -> None:
        """Begin the next step."""
        self._step += 1
        print(f"\n[{self._step}/{STEPS}] {text}", flush=True)

    def command(self, prompt: str, text: str) -> None:
        """Show a command as one would type it."""
        print(f"      {prompt} {text}", flush=True)

    def answer(self, text: str) -> None:
        """Show what came of it."""
        for line in text.splitlines():
            print(f"        {line}", flush=True)

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began


def run_in_guest(say: Narrator, guest: Machine, *commands: str) -> str:
    """Show and run each command in the guest; give the last one's output."""
    output = ""
    for command in commands:
        say.command("guest#", command)
        output = guest.run(command)
        say.answer(output)
    return output


@contextmanager
def serve(say: Narrator, disk: Path, socket: Path) -> Iterator[Server]:
    """Have vhostblk serve the image."""
    options = f"--addr.type=unix,addr.path={socket},writable=on,num-queues={QUEUES}"
    say.command("host$", f"vhostblk {disk} {options}")
    began = time.monotonic()
    with Server(Program.VHOSTBLK, [str(disk), options], DIRECTORY) as server:
        say.answer(f"pid {server.pid}, guests may connect after {time.monotonic() - began:.2f} s")
        yield server


def work_in_guest(say: Narrator, socket: Path) -> str:
    """Make a file system, write, reboot, read back; give the digest of what was written."""
    attached = VhostUserDisk(socket, queues=QUEUES)
    say.command("host$", f"{QEMU} … -object memory-backend-memfd,id=memory,size=256M,share=on \\")
    say.command("     ", "  " + " ".join(attached.arguments()))
    began = time.monotonic()
    with Machine(DIRECTORY, attached, cpus=QUEUES) as guest:
        say.answer(f"Linux {guest.run('uname -r')} is up after {time.monotonic() - began:.1f} s")
        queue = "/sys/block/vda/mq"
        run_in_guest(say, guest, "grep vda /proc/partitions", f"ls {queue}")

        say.step("The guest makes a file system and writes")
        run_in_guest(
            say,
            guest,
            "mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt",
            "echo 'written by the guest' > /mnt/note",
            "dd if=/dev/urandom of=/mnt/data bs=1M count=16 conv=fsync 2>&1 | grep records",
        )
        digest = run_in_guest(say, guest, "sha256sum < /mnt/data").split()[0]
        run_in_guest(say, guest, "fstrim -v /mnt", "umount /mnt")

        say.step("It reboots and reads back")
        began = time.monotonic()
        say.command("guest#", "reboot")
        guest.reboot()
        say.answer(f"up again after {time.monotonic() - began:.1f} s")
        again = run_in_guest(say, guest, "mount /dev/vda /mnt", "sha256sum < /mnt/data").split()[0]
        if again != digest:
            raise GuestError("the guest read back something else than it wrote")
        run_in_guest(say, guest, "cat /mnt/note", "umount /mnt")
        say.command("guest#", "poweroff")
        guest.power_off()
    return digest


def look_from_outside(say: Narrator, disk: Path, digest: str) -> None:
    """Show that the image holds what the guest wrote."""
    say.command("host$", f"e2fsck -fn {disk}")
    image.check_ext4(disk)
    say.answer("clean")
    say.command("host$", f"debugfs -R 'cat note' {disk}")
    say.answer(image.ext4_file(disk, "note").decode())
    say.command("host$", f"debugfs -R 'cat data' {disk} | sha256sum")
    found = hashlib.sha256(image.ext4_file(disk, "data")).hexdigest()
    say.answer(found)
    if found != digest:
        raise GuestError("the image holds something else than the guest wrote")
    say.answer(f"{image.allocated(disk) >> 20} of {SIZE >> 20} MiB take storage on the host")


def demo() -> None:
    """Tell the whole story."""
    os.chdir(ROOT)
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir()
    disk, socket = DIRECTORY / "disk.img", DIRECTORY / "v.sock"
    say = Narrator()

    say.step("A raw disk image")
    say.command("host$", f"truncate -s {SIZE >> 20}M {disk}")
    image.create(disk, SIZE)
    say.step("vhostblk exports it")
    with serve(say, disk, socket) as server:
        say.step("QEMU boots a guest with that disk (emulated processors: a few seconds)")
        digest = work_in_guest(say, socket)
        say.step("The daemon stops, and the image is looked at from outside")
        say.command("host$", f"kill {server.pid}")
        status = server.stop()
        say.answer(f"exit status {status}")
        if status:
            raise HarnessError(f"vhostblk did not end well{server.log()}")
    look_from_outside(say, disk, digest)
    print(f"\nAll is as it should be, after {say.elapsed():.0f} s. Left in {DIRECTORY}/: ", end="")
    print(", ".join(sorted(path.name for path in DIRECTORY.iterdir())))


if __name__ == "__main__":
    try:
        demo()
    except (GuestError, HarnessError, AssertionError) as error:
        sys.exit(f"\ndemo: {error}")

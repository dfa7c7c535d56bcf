# SPDX-License-Identifier: Apache-2.0
"""A host-managed zoned disk as Linux sees it, beside `null_blk`, which Linux has itself.

It needs a later QEMU and kernel (`python -m peers forky` gets them), and is skipped without them.
"""

from __future__ import annotations

import random
import re
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from integration.guest import newer
from integration.guest.server import Program, Server
from peers.debian import FORKY
from vhostblk.block.zones import EmulatedZones, ZonedLimits, ZoneError, ZoneModel, ZoneOp, ZoneState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.usefixtures("vhostblk_only"),
    pytest.mark.skipif(not FORKY.is_complete(), reason="no later QEMU and kernel"),
]

#: KiB of a zone.
ZONE = 4096
NODE = (
    "driver=null-co,node-name=disk,size=33554432,read-zeroes=on,x-vhostblk-zoned.zone-size=4M,"
    "x-vhostblk-zoned.zone-capacity=3M,x-vhostblk-zoned.conventional-zones=1,"
    "x-vhostblk-zoned.max-active-zones=3,x-vhostblk-zoned.max-append-bytes=64K,"
    "x-vhostblk-zoned.max-open-zones="
)
#: The same in Linux. With one open zone it is clear which one has to give way.
NULL_BLK = """
mount -t configfs none /sys/kernel/config
mkdir /sys/kernel/config/nullb/peer
cd /sys/kernel/config/nullb/peer
echo 32 > size; echo 1 > zoned; echo 4 > zone_size; echo 3 > zone_capacity
echo 1 > zone_nr_conv; echo 1 > zone_max_open; echo 3 > zone_max_active; echo 1 > power
"""
#: A line of `blkzone report`; the write pointer counts from the zone's start, in sectors.
_LINE = re.compile(r"cap 0x(\w+), wptr 0x(\w+) .*zcond:.*\((\w+)\) \[type: (\d)")


class Guest(newer.NewerMachine):
    """A guest that has `blkzone` (util-linux)."""

    programs = ("blkzone",)
    modules = (*newer.NewerMachine.modules, "null_blk")

    def zones(self, disk: str) -> list[tuple[str, int]]:
        """Report each zone's state, and how many KiB of it are written."""
        found = _LINE.findall(self.run(f"blkzone report {disk}"))
        assert [int(kind) for *_, kind in found] == [1, *[2] * 7]
        assert [int(capacity, 16) // 2 for capacity, *_ in found] == [4096, *[3072] * 7]
        return [(state, int(pointer, 16) // 2) for _, pointer, state, _ in found[1:]]

    def zone(self, verb: str, number: int, disk: str) -> str:
        """Run `blkzone` on one zone; its output says what has failed."""
        where = f"-o {number * ZONE * 2} -l {ZONE * 2}"
        return self.run(f"blkzone {verb} {where} {disk} 2>&1 || true")

    def write(self, number: int, at: int, length: int, disk: str) -> str:
        """Write KiB of a zone; the same."""
        place = f"seek={number * ZONE // 4 + at // 4} count={length // 4}"
        command = f"dd if=/dev/zero of={disk} bs=4k {place} oflag=direct conv=notrunc"
        return self.run(f"{command} 2>&1 || true")


def start(lane: str, directory: Path, max_open: int = 2) -> Server:
    address = f"addr.type=unix,addr.path={directory}/v.sock"
    export = f"vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=2,{address}"
    server = Server(
        Program.VHOSTBLK, ["--blockdev", f"{NODE}{max_open}", "--export", export], directory
    )
    server.environment["VHOSTBLK_LANE"] = lane
    # Firmware reads disks, too, and doesn't know zones.
    server.expected_log = "write pointer|too many (open|active) zones|accept ZONED"
    return server


def test_linux_finds_and_uses_zones(directory: Path) -> None:
    lanes = ("express", "python", "peer")
    folders = [directory / lane for lane in lanes]
    disks = [
        newer.PassedOnDisk(folder / "v.sock", identifier=lane, queues=2)
        for lane, folder in zip(lanes, folders, strict=True)
    ]
    with (
        start(lanes[0], folders[0]),
        start(lanes[1], folders[1]),
        start("express", folders[2], max_open=1),
        Guest(directory, *disks, cpus=2) as guest,
    ):
        for disk in ("/dev/vda", "/dev/vdb"):
            use_zones(guest, disk)
        compare(guest, "/dev/vdc")
        guest.power_off()


def use_zones(guest: Guest, disk: str) -> None:
    """Take zones through their lives, up to what the disk allows."""
    queue = f"/sys/block/{disk.removeprefix('/dev/')}/queue"
    names = "zoned nr_zones chunk_sectors max_open_zones max_active_zones zone_append_max_bytes"
    attributes = guest.run(f"cd {queue}; cat {names}").split()
    assert attributes == ["host-managed", "8", str(ZONE * 2), "2", "3", "65536"]
    assert guest.zones(disk) == [("em", 0)] * 7

    assert "error" not in guest.write(0, 64, 64, disk)  # conventional
    assert "error" not in guest.write(1, 0, 64, disk)
    assert "error" not in guest.write(1, 64, 8, disk)
    assert "error" in guest.write(2, 64, 4, disk)  # not at the write pointer
    assert guest.zones(disk)[:2] == [("oi", 72), ("em", 0)]
    assert guest.zone("open", 2, disk) == ""
    assert guest.zone("close", 1, disk) == ""
    assert guest.zones(disk)[:3] == [("cl", 72), ("oe", 0), ("em", 0)]

    assert guest.zone("open", 3, disk) == ""
    assert "Too many references" in guest.zone("open", 1, disk)
    assert "Value too large" in guest.write(4, 0, 4, disk)
    assert guest.zones(disk)[3] == ("em", 0)  # Linux writes again once it has looked
    assert guest.zone("finish", 2, disk) == ""
    assert "error" not in guest.write(4, 0, 3072, disk)
    states = [state for state, _ in guest.zones(disk)]
    assert states == ["cl", "fu", "oe", "fu", "em", "em", "em"]

    assert guest.zone("reset", 1, disk) == ""
    assert guest.zones(disk)[0] == ("em", 0)
    assert guest.run(f"blkzone reset {disk}") == ""
    assert guest.zones(disk) == [("em", 0)] * 7


def compare(guest: Guest, disk: str) -> None:
    """Do the same to Linux's own zoned disk: after each step both are alike."""
    guest.run(NULL_BLK)
    steps = list(random_steps(seed=1, count=50))
    ours, theirs = (guest.run(follow(steps, name)) for name in (disk, "/dev/peer"))
    for number, (step, our, their) in enumerate(
        zip(steps, ours.split("---"), theirs.split("---"), strict=True)
    ):
        assert in_common(our) == in_common(their), f"step {number}: {step}"


def follow(steps: list[str], disk: str) -> str:
    """Do one step after the other and say what each has come to, and the zones then."""
    lines = [f"{step} > /dev/null 2>&1 && echo done; blkzone report $disk" for step in steps]
    return f"disk={disk}\n" + "\necho ---\n".join(lines)


def in_common(answer: str) -> list[object]:
    """Leave out what is undefined: the write pointer of a full zone."""
    zones = [
        (capacity, None if state == "fu" else pointer, state, kind)
        for capacity, pointer, state, kind in _LINE.findall(answer)
    ]
    assert len(zones) == 8
    return ["done" in answer, *zones]


_OPEN = (ZoneState.IMPLICIT_OPEN, ZoneState.EXPLICIT_OPEN, ZoneState.FULL)


def random_steps(seed: int, count: int) -> Iterator[str]:
    """Make commands; writes are mostly where they should be, in units of 256 KiB."""
    chance, unit = random.Random(seed), 256 << 10
    limits = ZonedLimits(ZoneModel.HOST_MANAGED, ZONE << 10, max_open=1, max_active=3)
    model = EmulatedZones(8 * ZONE << 10, limits, capacity=3 << 20, conventional=1)
    for _ in range(count):
        number = chance.randrange(1, 6)
        (zone,) = model.report(number * ZONE << 10, 1)
        verb = chance.choice(["open", "close", "finish", "reset", "write", "write", "write"])
        # To finish one that is not open takes the resources of an open one there, and none here.
        if verb == "finish" and zone.state not in _OPEN:
            continue
        with suppress(ZoneError):
            if verb != "write":
                yield f"blkzone {verb} -o {zone.start // 512} -l {zone.length // 512} $disk"
                model.manage(ZoneOp[verb.upper()], zone.start, zone.length)
                continue
            place = zone.write_pointer + chance.choice([0, 0, 0, unit])
            length = min(
                chance.choice([1, 3, 12]) * unit, max(zone.start + (3 << 20) - place, unit)
            )
            yield (
                f"dd if=/dev/zero of=$disk bs=256k seek={place // unit} count={length // unit} "
                "oflag=direct conv=notrunc"
            )
            for start in range(place, place + length, unit):
                model.write(start, unit)

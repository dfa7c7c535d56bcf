# SPDX-License-Identifier: Apache-2.0
"""Runs inside the guest: a multipath map of two paths, and a helper that is asked to reserve it.

Arguments: the helper's socket. The output is a line of JSON for each thing that was seen.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from integration.pr_client import KEY, NAMES, TARGETS, Client, make_disks, parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Seconds for what udev and multipathd do.
PATIENCE = 60.0
MAP = "/dev/mapper/mpatha"
#: A reservation that lasts as long as any path is registered.
ALL_REGISTRANTS = 7
LUN = TARGETS / "loopback" / NAMES[1] / "tpgt_1/lun/lun_0"


def tell(what: str, value: object) -> None:
    print(json.dumps([what, value]), flush=True)


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not condition():
        if time.monotonic() > began + PATIENCE:
            raise TimeoutError(what)
        time.sleep(0.05)
    print(f"# {what}: {time.monotonic() - began:.1f} s", flush=True)


@contextmanager
def opened(path: str, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


class Helper:
    """What is asked of the helper, on one connection."""

    def __init__(self, path: str) -> None:
        self._client = Client(path)

    def out(self, device: str, action: int, kind: int, given: bytes) -> list[object]:
        """Send PERSISTENT RESERVE OUT; the answer's status, and sense data."""
        with opened(device) as fd:
            status, sense, _ = self._client.ask(fd, 0x5F, action, kind, given)
        return [status, sense]

    def keys(self, device: str) -> list[int]:
        """Return the registered keys; a device that has to tell something first is asked again."""
        data = self._read(device, 0)
        (length,) = struct.unpack_from(">I", data, 4)
        return [key for (key,) in struct.iter_unpack(">Q", data[8 : 8 + length])]

    def reservation(self, device: str) -> tuple[int, int] | None:
        """Return key and type."""
        data = self._read(device, 1)
        if not struct.unpack_from(">I", data, 4)[0]:
            return None
        key, kind = struct.unpack_from(">Q4xxB", data, 8)
        return key, kind & 15

    def _read(self, device: str, action: int) -> bytes:
        for _ in range(5):
            with opened(device, os.O_RDONLY) as fd:
                status, sense, data = self._client.ask(fd, 0x5E, action, 0, 8192)
            if status == 0:
                return bytes.fromhex(str(data))
        raise OSError(f"{device}: status {status}, sense {sense}")


def has_paths(count: int) -> bool:
    slaves = list(Path("/sys/block/dm-0/slaves").glob("*"))
    return len(slaves) == count and Path(MAP).exists()


def main() -> None:
    helper_path = sys.argv[1]
    disks = make_disks()
    wait_for("map", lambda: has_paths(2))
    helper = Helper(helper_path)
    tell("at first", [helper.keys(MAP), helper.reservation(MAP)])
    tell("registered", helper.out(MAP, 6, 0, parameters(0, KEY))[0])
    tell("keys by each path", [helper.keys(disk) for disk in disks])
    tell("reserved", helper.out(MAP, 1, ALL_REGISTRANTS, parameters(KEY))[0])
    tell("reservation by each path", [helper.reservation(disk) for disk in disks])
    tell("reserved otherwise", helper.out(MAP, 1, 1, parameters(KEY))[0])
    tell("unknown action", helper.out(MAP, 9, 0, parameters(KEY)))
    # The port goes, and its registration with it.
    (LUN / "disk").unlink()
    wait_for("path is gone", lambda: has_paths(1))
    tell("keys of one path", helper.keys(MAP))
    LUN.joinpath("disk").symlink_to(TARGETS / "core/fileio_0/disk")
    wait_for("path is back", lambda: has_paths(2))
    # multipathd registers it.
    wait_for("registered again", lambda: helper.keys(MAP) == [KEY, KEY])
    tell("reservation", helper.reservation(MAP))
    tell("released", helper.out(MAP, 2, ALL_REGISTRANTS, parameters(KEY))[0])
    tell("no reservation", helper.reservation(MAP))
    tell("cleared", helper.out(MAP, 3, 0, parameters(KEY))[0])
    tell("no keys", [helper.keys(disk) for disk in disks[:1]])


if __name__ == "__main__":
    main()

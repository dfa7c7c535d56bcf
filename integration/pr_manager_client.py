# SPDX-License-Identifier: Apache-2.0
"""Runs inside the guest: a daemon's managers, on two SCSI disks of LIO that are one.

Arguments: the socket of a helper. One disk's commands go by the helper, the other one's by the
kernel, so that each is an initiator of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from integration.pr_client import KEY, OTHER_KEY, make_disks, remove_disks
from vhostblk.daemon import Daemon
from vhostblk.errors import VhostblkError
from vhostblk.schema.reservations import PrInAction, PrOutAction, PrType


def tell(what: str, value: object) -> None:
    """Print a line for the test."""
    print(json.dumps([what, value]), flush=True)


class Initiator:
    """A node of the daemon, and its key."""

    def __init__(self, daemon: Daemon, name: str, key: int) -> None:
        self._daemon = daemon
        self._name = name
        self._key = key

    async def change(self, action: PrOutAction, kind: PrType | None = None, other: int = 0) -> None:
        """Change something, and tell what came of it."""
        try:
            await self._daemon.change_reservations(
                self._name, action, key=self._key, service_action_key=other, type=kind
            )
            result = "done"
        except VhostblkError as error:
            result = str(error).rpartition(": ")[2]
        tell(f"{self._name}: {action.value}", result)

    async def register(self) -> None:
        """Register the key."""
        await self._daemon.change_reservations(
            self._name, PrOutAction.REGISTER, service_action_key=self._key
        )

    async def state(self) -> list[Any]:
        """Return keys and reservation."""
        keys = await self._daemon.read_reservations(self._name, PrInAction.READ_KEYS)
        held = await self._daemon.read_reservations(self._name, PrInAction.READ_RESERVATION)
        reservation: Any = held.reservation
        kind = reservation.type.value if reservation else None
        return [keys.keys, reservation.key if reservation else None, kind]


async def main() -> None:
    """Have two nodes dispute about a disk."""
    disks = make_disks()
    managers = (
        {"qom-type": "pr-manager-helper", "id": "by-helper", "path": sys.argv[1]},
        {"qom-type": "x-vhostblk-pr-manager-kernel", "id": "by-kernel"},
    )
    nodes = [
        {
            "driver": "host_device",
            "node-name": name,
            "filename": disk,
            "pr-manager": manager["id"],
            "aio": "threads",
            "locking": "off",
        }
        for name, disk, manager in zip(("a", "b"), disks, managers, strict=True)
    ]
    async with Daemon(objects=managers, blockdevs=nodes) as daemon:
        a, b = Initiator(daemon, "a", KEY), Initiator(daemon, "b", OTHER_KEY)
        await a.register()
        await b.register()
        tell("registered", await a.state())
        for kind in PrType:
            await a.change(PrOutAction.RESERVE, kind)
            tell(kind.value, await a.state())
            await b.change(PrOutAction.RESERVE, kind)
            await a.change(PrOutAction.RELEASE, kind)
            await b.change(PrOutAction.RESERVE, kind)
            tell(kind.value, await a.state())
            await a.change(PrOutAction.RESERVE, kind)
            await b.change(PrOutAction.RELEASE, kind)
        kind = PrType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY
        await a.change(PrOutAction.RESERVE, kind)
        await b.change(PrOutAction.PREEMPT, kind, KEY)
        tell("preempted", await a.state())
        await a.change(PrOutAction.RESERVE, kind)
        await b.change(PrOutAction.CLEAR)
        tell("cleared", await a.state())
        capabilities = await daemon.read_reservations("a", PrInAction.REPORT_CAPABILITIES)
        found: Any = capabilities.capabilities
        tell("capabilities", [found.aptpl, len(found.types)])
        await a.register()
        full: Any = await daemon.read_reservations("a", PrInAction.READ_FULL_STATUS)
        tell("full status", [[each.key, each.transport_id] for each in full.registrations])
        await a.change(PrOutAction.CLEAR)
    remove_disks()


if __name__ == "__main__":
    os.environ["VHOSTBLK_ENGINE"] = "off"
    asyncio.run(main())

# SPDX-License-Identifier: Apache-2.0
"""Run as a program: asks PAM services, as `authz-pam` objects, about two users."""

from __future__ import annotations

import asyncio

from vhostblk import Daemon
from vhostblk.errors import VhostblkError
from vhostblk.net.authorization import is_allowed

SERVICES = ("vhostblk-test", "vhostblk-deny", "no-such-service")


async def main() -> None:
    """Ask, inside the sandbox that a daemon has."""
    async with Daemon(
        objects=[f"authz-pam,id={name},service={name}" for name in SERVICES]
    ) as daemon:
        for service in SERVICES:
            for user in ("alice", "bob"):
                try:
                    allowed = await is_allowed(daemon.keys, service, user)
                    said = "allowed" if allowed else "denied"
                except VhostblkError as error:
                    said = str(error)
                print(f"{service} {user}: {said}")


if __name__ == "__main__":
    asyncio.run(main())

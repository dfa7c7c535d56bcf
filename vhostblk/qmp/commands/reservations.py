# SPDX-License-Identifier: Apache-2.0
"""Commands on persistent reservations, and their event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.qmp.registry import command, event
from vhostblk.schema.base import UNSET
from vhostblk.schema.reservations import (
    PrIn,
    PrManagerInfo,
    PrManagerStatusChanged,
    PrOut,
    PrStatus,
)

if TYPE_CHECKING:
    from vhostblk.daemon import Daemon

event("PR_MANAGER_STATUS_CHANGED", PrManagerStatusChanged)


@command("query-pr-managers")
async def query_pr_managers(daemon: Daemon) -> list[PrManagerInfo]:
    """List the managers; QEMU's emulator has this command, its storage daemon does not."""
    return [
        PrManagerInfo(id=manager_id, connected=manager.is_connected)
        for manager_id, manager in daemon.graph.pr_managers
    ]


@command("x-vhostblk-pr-in", features=("unstable",))
async def pr_in(daemon: Daemon, arguments: PrIn) -> PrStatus:
    """Read registrations, the reservation or capabilities of a node's device."""
    return await daemon.read_reservations(arguments.node_name, arguments.service_action)


@command("x-vhostblk-pr-out", features=("unstable",))
async def pr_out(daemon: Daemon, arguments: PrOut) -> None:
    """Change registrations or the reservation of a node's device."""
    await daemon.change_reservations(
        arguments.node_name,
        arguments.service_action,
        key=arguments.key,
        service_action_key=arguments.service_action_key,
        type=None if arguments.type is UNSET else arguments.type,
        aptpl=arguments.aptpl,
        all_target_ports=arguments.all_target_ports,
    )

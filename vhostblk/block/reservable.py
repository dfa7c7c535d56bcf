# SPDX-License-Identifier: Apache-2.0
"""Persistent reservations of devices: sending commands to the device of a node."""

from __future__ import annotations

import asyncio
import fcntl
import os
from typing import TYPE_CHECKING, NamedTuple

from vhostblk.block.errors import BlockError
from vhostblk.errors import reason
from vhostblk.reservations import codec
from vhostblk.reservations.layout import PERSISTENT_RESERVE_OUT

if TYPE_CHECKING:
    from vhostblk.block.graph.node import BlockNode
    from vhostblk.reservations.manager import Manager
    from vhostblk.reservations.wire import Reply
    from vhostblk.schema.reservations import PrInAction, PrOutAction, PrStatus, PrType

#: After a reset, or a change of reservations by another initiator, a device reports this to each
#: initiator once, instead of doing the command.
_ATTEMPTS = 4
#: The commands under way, also those whose callers were cancelled.
_sending: set[asyncio.Future[Reply]] = set()


class Reservable:
    """A node that uses the descriptor of a device."""

    node_name: str
    fd: int
    read_only: bool
    #: The manager that sends the commands; None: the node has none.
    pr_manager: Manager | None


class Change(NamedTuple):
    """Arguments of PERSISTENT RESERVE OUT; see `schema.reservations.PrOut`."""

    action: PrOutAction
    key: int = 0
    service_action_key: int = 0
    type: PrType | None = None
    aptpl: bool = False
    all_target_ports: bool = False


async def read_reservations(node: BlockNode, action: PrInAction) -> PrStatus:
    """Return the answer of a node's device; raises VhostblkError."""
    title = f"node '{node.node_name}': {action.value}"
    reply = await _run(node, codec.command_in(action), b"", title)
    try:
        return codec.decode_in(action, reply.data)
    except codec.DataError as error:
        raise codec.DataError(f"{title}: {error}") from error


async def change_reservations(node: BlockNode, change: Change) -> None:
    """Change registrations or the reservation of a node's device; raises VhostblkError."""
    title = f"node '{node.node_name}': {change.action.value}"
    if node.read_only:
        raise BlockError(f"{title}: the node is read-only")
    cdb, parameters = codec.command_out(
        change.action,
        change.key,
        change.service_action_key,
        change.type,
        aptpl=change.aptpl,
        all_target_ports=change.all_target_ports,
    )
    await _run(node, cdb, parameters, title)


async def _run(node: BlockNode, cdb: bytes, parameters: bytes, title: str) -> Reply:
    if not isinstance(node, Reservable):
        raise BlockError(f"node '{node.node_name}' ({node.driver}) is not a device of the host")
    if node.pr_manager is None:
        raise BlockError(f"node '{node.node_name}' has no 'pr-manager'")
    fd = _descriptor(node, title, writes=cdb[0] == PERSISTENT_RESERVE_OUT)
    # A task of its own: the command goes on if the caller is cancelled, and a thread may use the
    # descriptor until it has ended.
    sending = asyncio.ensure_future(_send(node.pr_manager, fd, cdb, parameters))
    _sending.add(sending)
    sending.add_done_callback(_sent)
    reply = await asyncio.shield(sending)
    if reply.status:
        raise codec.CommandFailedError(f"{title}: {codec.describe_failure(reply)}")
    return reply


async def _send(manager: Manager, fd: int, cdb: bytes, parameters: bytes) -> Reply:
    """Send a command until the device does it; close the descriptor. Raises VhostblkError."""
    manager.commands += 1
    try:
        for attempt in range(_ATTEMPTS):
            reply = await manager.run(fd, cdb, parameters)
            if not codec.is_unit_attention(reply) or attempt == _ATTEMPTS - 1:
                break
    finally:
        manager.commands -= 1
        os.close(fd)
    return reply


def _sent(sending: asyncio.Future[Reply]) -> None:
    """Forget a command; its error is not reported if its caller was cancelled."""
    _sending.discard(sending)
    if not sending.cancelled():
        sending.exception()


def _descriptor(node: Reservable, title: str, *, writes: bool) -> int:
    """Return a descriptor for one command, as the node may be closed or reopened meanwhile."""
    if not writes or fcntl.fcntl(node.fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
        return os.dup(node.fd)
    try:
        # With auto-read-only, a node without writers is open for reading only.
        return os.open(f"/proc/self/fd/{node.fd}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BlockError(f"{title}: can't open the device for writing: {reason(error)}") from error

# SPDX-License-Identifier: Apache-2.0
"""Internal snapshots: which node stores them, and making one as a change that can be undone.

A node that can't store snapshots uses those of its primary child, as in QEMU, if no other child
holds data.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vhostblk.block.errors import BlockError
from vhostblk.block.graph.inherit import BACKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostblk.block.drivers.qcow2.node import Qcow2Node
    from vhostblk.block.drivers.qcow2.snapshots import Snapshot
    from vhostblk.block.graph.node import BlockNode

logger = logging.getLogger(__name__)


def keeper_of(node: BlockNode) -> Qcow2Node | None:
    """Return the node that stores the snapshots of `node`; None: there is no such node."""
    way = list(_way_down(node))
    if way[-1].driver != "qcow2":
        return None
    keeper: Qcow2Node = way[-1]  # type: ignore[assignment]  # its driver was checked above
    return keeper


def can_snapshot(node: BlockNode) -> bool:
    """Return whether all nodes down to the one that stores the snapshots are writable."""
    return all(each.active and not each.read_only for each in _way_down(node))


def _way_down(node: BlockNode) -> Iterator[BlockNode]:
    """Yield a node and its primary descendants, down to one that stores snapshots.

    Without one, end at the node that has several data children or none.
    """
    yield node
    while node.driver != "qcow2" and (child := node.primary_child) is not None:
        if any(role != BACKING and edge is not child for role, edge in node.children.items()):
            break
        node = child.node
        yield node


class InternalSnapshotAction:
    """The `Action` of `blockdev-snapshot-internal-sync`. `device`: the disk's name in messages."""

    def __init__(self, node: Qcow2Node, name: str, device: str) -> None:
        self._node = node
        self._name = name
        self._device = device
        self._made: Snapshot

    def nodes(self) -> list[BlockNode]:
        """Return the node."""
        return [self._node]

    async def prepare(self) -> None:
        """Make the snapshot."""
        try:
            self._made = await self._node.create_snapshot(self._name, self._device)
        except OSError as error:
            raise BlockError(
                f"Failed to create snapshot '{self._name}' on device '{self._device}': "
                f"{error.strerror}"
            ) from error

    async def commit(self) -> None:
        """Do nothing more."""

    async def abort(self) -> None:
        """Delete the snapshot."""
        number = self._made.id.decode()
        name = self._made.name.decode(errors="surrogateescape")
        try:
            await self._node.delete_snapshot(id=number, name=name)
        except (BlockError, OSError) as error:
            logger.error(
                "Failed to delete snapshot with id '%s' and name '%s' on device '%s' in abort: %s",
                number,
                self._name,
                self._node.node_name,
                error,
            )

# SPDX-License-Identifier: Apache-2.0
"""Making an internal snapshot, as a change that can be undone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vhostblk.block.errors import BlockError

if TYPE_CHECKING:
    from vhostblk.block.drivers.qcow2.node import Qcow2Node
    from vhostblk.block.drivers.qcow2.snapshots import Snapshot
    from vhostblk.block.node import BlockNode

logger = logging.getLogger(__name__)


class InternalSnapshotAction:
    """`blockdev-snapshot-internal-sync`; an `Action`."""

    def __init__(self, node: Qcow2Node, name: str) -> None:
        self._node = node
        self._name = name
        self._made: Snapshot

    def nodes(self) -> list[BlockNode]:
        """Return the node."""
        return [self._node]

    async def prepare(self) -> None:
        """Make the snapshot."""
        try:
            self._made = await self._node.create_snapshot(self._name)
        except OSError as error:
            raise BlockError(
                f"Failed to create snapshot '{self._name}' on device '{self._node.node_name}': "
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

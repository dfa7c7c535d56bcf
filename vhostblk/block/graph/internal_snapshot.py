# SPDX-License-Identifier: Apache-2.0
"""Internal snapshots: the node that stores them, and an action that creates one.

A node that can't store snapshots uses those of its primary child, as in QEMU, if no other child
holds data.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol

from vhostblk.block.errors import BlockError
from vhostblk.block.graph.inherit import BACKING
from vhostblk.block.graph.node import BlockNode
from vhostblk.errors import errors_as, reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhostblk.schema.snapshot import SnapshotInfo

logger = logging.getLogger(__name__)


class InternalSnapshot(Protocol):
    """One internal snapshot; id and name as in the image."""

    id: bytes
    name: bytes

    def describe(self) -> SnapshotInfo:
        """Return the snapshot's entry in queries."""


class KeepsSnapshots(BlockNode):
    """A node whose image has internal snapshots of its own."""

    @abstractmethod
    def snapshots(self) -> Sequence[InternalSnapshot]:
        """Return the internal snapshots, the oldest first."""

    @abstractmethod
    async def create_snapshot(self, name: str, device: str | None = None) -> InternalSnapshot:
        """Create an internal snapshot, between requests; raises BlockError or OSError.

        `device` is the node's name in messages.
        """

    @abstractmethod
    async def apply_snapshot(
        self,
        *,
        id: str | None = None,  # noqa: A002
        name: str | None = None,
    ) -> InternalSnapshot:
        """Revert to the internal snapshot with this id and name; raises BlockError or OSError."""

    @abstractmethod
    async def delete_snapshot(
        self,
        *,
        id: str | None = None,  # noqa: A002
        name: str | None = None,
        device: str | None = None,
    ) -> InternalSnapshot:
        """Delete the internal snapshot with this id and name; raises BlockError or OSError."""


def keeper_of(node: BlockNode) -> KeepsSnapshots | None:
    """Return the node that stores a node's internal snapshots; None: not supported."""
    *_, last = _way_down(node)
    return last if isinstance(last, KeepsSnapshots) else None


def can_snapshot(node: BlockNode) -> bool:
    """Return whether all nodes down to the one that stores the snapshots are writable."""
    return all(each.active and not each.read_only for each in _way_down(node))


def _way_down(node: BlockNode) -> Iterator[BlockNode]:
    """Yield a node and its primary descendants, down to one that stores snapshots.

    If there is none, end at a node with no data child or with several.
    """
    yield node
    while not isinstance(node, KeepsSnapshots) and (child := node.primary_child) is not None:
        if any(role != BACKING and edge is not child for role, edge in node.children.items()):
            break
        node = child.node
        yield node


class InternalSnapshotAction:
    """The `Action` of `blockdev-snapshot-internal-sync`; `device` is the name in messages."""

    def __init__(self, node: KeepsSnapshots, name: str, device: str) -> None:
        self._node = node
        self._name = name
        self._device = device
        self._made: InternalSnapshot

    def nodes(self) -> list[BlockNode]:
        """Return the node."""
        return [self._node]

    async def prepare(self) -> None:
        """Create the snapshot."""
        what = f"Failed to create snapshot '{self._name}' on device '{self._device}'"
        with errors_as(BlockError, what):
            self._made = await self._node.create_snapshot(self._name, self._device)

    async def commit(self) -> None:
        """Do nothing."""

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
                reason(error),
            )

# SPDX-License-Identifier: Apache-2.0
"""The capability to provide a snapshot of a disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhostblk.block.graph.node import Extent
    from vhostblk.block.io.iovec import IoVec


class SnapshotSource(ABC):
    """A node that keeps a snapshot of its data, for nodes of `snapshot-access`."""

    @abstractmethod
    async def snapshot_preadv(self, offset: int, iov: IoVec) -> None:
        """Fill all of `iov` from `offset` of the snapshot."""

    @abstractmethod
    async def snapshot_block_status(self, offset: int, length: int) -> Extent:
        """Return the status of a run at `offset` of the snapshot, of at most `length` bytes."""

    @abstractmethod
    async def snapshot_pdiscard(self, offset: int, length: int) -> None:
        """Stop keeping a range of the snapshot."""

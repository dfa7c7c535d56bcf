# SPDX-License-Identifier: Apache-2.0
"""Capabilities that a node has because it shows a child's bytes.

`BlockNode.capability` of such a node calls `passed_on`. Requests go through the edge, which checks
them, and are shifted by the offset of the node's bytes in the child.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vhostblk.block.erase import ErasesSecurely, eraser_of
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.lifetime import HasLifetime
from vhostblk.block.zones import Zoned, zones_of

if TYPE_CHECKING:
    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.block.zones import Zone, ZonedLimits, ZoneOp


def passed_on(edge: Edge, kind: type, *, offset: int, whole: bool) -> Any:
    """Return a capability of the child for the node that shows it; None: the child has none.

    `offset` is the start of the node's bytes in the child; `whole`: the node shows all bytes.
    """
    if kind is HasLifetime:
        return edge.node.capability(kind)
    if kind is ErasesSecurely and edge.node.capability(kind) is not None:
        return _ErasesBelow(edge, offset)
    if kind is Zoned and whole and (zones := zones_of(edge.node)) is not None:
        return _ZonesBelow(edge, zones)
    return None


class _ErasesBelow(ErasesSecurely):
    def __init__(self, edge: Edge, offset: int) -> None:
        self._edge = edge
        self._offset = offset

    @property
    def erases_securely(self) -> bool:
        return eraser_of(self._edge.node) is not None

    async def psecure_erase(self, offset: int, length: int) -> None:
        await self._edge.psecure_erase(self._offset + offset, length)


class _ZonesBelow(Zoned):
    def __init__(self, edge: Edge, zones: Zoned) -> None:
        self._edge = edge
        self._zones = zones

    @property
    def zoned(self) -> ZonedLimits:
        return self._zones.zoned

    async def zone_report(self, offset: int, count: int) -> list[Zone]:
        return await self._edge.zone_report(offset, count)

    async def zone_mgmt(self, op: ZoneOp, offset: int, length: int) -> None:
        await self._edge.zone_mgmt(op, offset, length)

    async def zone_append(
        self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE
    ) -> int:
        return await self._edge.zone_append(offset, iov, flags)

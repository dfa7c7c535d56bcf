# SPDX-License-Identifier: Apache-2.0
"""`throttle`: a filter that applies the limits of a throttle group.

As in QEMU, reads and writes are throttled, and discards and zero writes as writes; flushes are not.
Requests are accounted for as they arrive here: one that the edge above splits counts several times,
and a discard that the edge ignores doesn't count.
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from msgspec.structs import replace

from vhostblk.block.graph.filter import FilterNode
from vhostblk.block.io.flags import WriteFlags
from vhostblk.engine.buckets import READ, WRITE
from vhostblk.engine.budget import EngineBudget
from vhostblk.engine.extents import Treatment

if TYPE_CHECKING:
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.block.throttle_group import ThrottleGroup, ThrottleGroups, ThrottleMember
    from vhostblk.engine.extents import ExtentMap


class ThrottleNode(FilterNode):
    """Delays requests according to the group's limits."""

    driver = "throttle"
    mutable_options = kept_options = frozenset({"throttle_group"})

    def __init__(self, node_name: str, options: Any) -> None:
        super().__init__(node_name, options)
        self._groups: ThrottleGroups
        self._member: ThrottleMember
        #: The group to move to, while the node is being reopened.
        self._next: ThrottleGroup

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        node = await super().open(node_name, options, graph)
        node._groups = graph.throttle_groups
        node._member = node._groups.find(options.throttle_group).join()
        return node

    def prepare_reopen(self, options: Any) -> None:
        self._next = self._groups.find(options.throttle_group)

    def commit_reopen(self) -> None:
        self._member.move(self._next)

    @property
    def strong_options(self) -> dict[str, Any]:
        return {"throttle-group": self._member.group.name}

    def drained_begin(self) -> None:
        self._member.lift_limits()

    def drained_end(self) -> None:
        self._member.restore_limits()

    async def preadv(self, offset: int, iov: IoVec) -> None:
        turn = self._member.enter(READ, iov.nbytes)
        if turn is not None:
            await turn
        await self._file.preadv(offset, iov)

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        turn = self._member.enter(WRITE, iov.nbytes)
        if turn is not None:
            await turn
        await self._file.pwritev(offset, iov, flags)

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        turn = self._member.enter(WRITE, length)
        if turn is not None:
            await turn
        await self._file.pwrite_zeroes(offset, length, flags)

    async def pdiscard(self, offset: int, length: int) -> None:
        turn = self._member.enter(WRITE, length)
        if turn is not None:
            await turn
        await self._file.pdiscard(offset, length)

    def extent_map(self) -> ExtentMap | None:
        """Return the child's map with the group's budget; None if it already has a budget.

        The map doesn't allow zero writes and discards, so that they are accounted for here.
        """
        below, budget = self._file.extent_map(), self._member.group.budget
        if below is None or below.budget is not None or not isinstance(budget, EngineBudget):
            return None
        return replace(below, budget=budget, zero_range=False, discard=Treatment.ASK)

    async def close(self) -> None:
        self._member.leave()

# SPDX-License-Identifier: Apache-2.0
"""Graph changes that succeed together or not at all.

An `Action` is prepared, then committed or aborted. Everything that can fail is done in `prepare`,
and takes effect at once. Actions are prepared in order. If one fails, those before it are aborted
in reverse order. The affected nodes are drained before the first action is prepared, and until all
are done. So no request sees a part of the changes. A single command is a list of one action.

An action may refer to nodes that an earlier action creates: it looks up its nodes when its turn
comes.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.node import BlockNode


class Action(Protocol):
    """One change."""

    def nodes(self) -> list[BlockNode]:
        """Return the nodes to drain; raises BlockError. Called first, and once."""

    async def prepare(self) -> None:
        """Make the change. If this raises BlockError, nothing has changed."""

    async def commit(self) -> None:
        """Finish the change, including what can't be undone. Never fails."""

    async def abort(self) -> None:
        """Undo `prepare()`. Never fails."""


class LateAction:
    """An action that is created when its turn comes; `make` raises BlockError."""

    def __init__(self, make: Callable[[], Action]) -> None:
        self._make = make
        self._action: Action

    def nodes(self) -> list[BlockNode]:
        """Create the action, and return its nodes."""
        self._action = self._make()
        return self._action.nodes()

    async def prepare(self) -> None:
        """Make the change."""
        await self._action.prepare()

    async def commit(self) -> None:
        """Finish the change."""
        await self._action.commit()

    async def abort(self) -> None:
        """Undo the change."""
        await self._action.abort()


async def perform(graph: Graph, actions: Sequence[Action]) -> None:
    """Perform all actions or none; raises BlockError."""
    async with graph.changing(), AsyncExitStack() as drained:
        prepared: list[Action] = []
        try:
            for action in actions:
                await drained.enter_async_context(graph.drained(action.nodes()))
                await action.prepare()
                prepared.append(action)
        except BaseException:
            for action in reversed(prepared):
                await action.abort()
            raise
        for action in prepared:
            await action.commit()

# SPDX-License-Identifier: Apache-2.0
"""Changes of the graph that succeed together or not at all.

An `Action` is prepared (whatever may fail happens there, in force at once), and then committed or
aborted. Several are prepared in their order; where one fails, those before it are aborted, the last
first. What an action changes is drained from before it is prepared until all are done: so nobody
sees some of the changes without the others. A single command is a list of one.

An action may refer to what an earlier one has made: it looks its nodes up when its turn comes.
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
        """Return the nodes whose users stop meanwhile; raises BlockError. Called first, once."""

    async def prepare(self) -> None:
        """Make the change; raises BlockError, and then nothing has changed."""

    async def commit(self) -> None:
        """Do what can't be undone. Never fails."""

    async def abort(self) -> None:
        """Undo `prepare()`. Never fails."""


class LateAction:
    """An action that is made when its turn comes; `make` raises BlockError."""

    def __init__(self, make: Callable[[], Action]) -> None:
        self._make = make
        self._action: Action

    def nodes(self) -> list[BlockNode]:
        """Make the action."""
        self._action = self._make()
        return self._action.nodes()

    async def prepare(self) -> None:
        """Make the change."""
        await self._action.prepare()

    async def commit(self) -> None:
        """Do what can't be undone."""
        await self._action.commit()

    async def abort(self) -> None:
        """Undo the change."""
        await self._action.abort()


async def perform(graph: Graph, actions: Sequence[Action]) -> None:
    """Perform actions, all or none; raises BlockError."""
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

# SPDX-License-Identifier: Apache-2.0
"""Changes of the graph that succeed together or not at all.

An `Action` is prepared (whatever may fail happens there, in force at once), and then committed or
aborted. Several are prepared in their order inside one drained section; where one fails, those
before it are aborted, the last first. A single command is a list of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostblk.block.graph import Graph
    from vhostblk.block.node import BlockNode


class Action(Protocol):
    """One change."""

    def nodes(self) -> list[BlockNode]:
        """Return the nodes whose users stop meanwhile; raises BlockError."""

    async def prepare(self) -> None:
        """Make the change; raises BlockError, and then nothing has changed."""

    async def commit(self) -> None:
        """Do what can't be undone. Never fails."""

    async def abort(self) -> None:
        """Undo `prepare()`. Never fails."""


async def perform(graph: Graph, actions: Sequence[Action]) -> None:
    """Perform actions, all or none; raises BlockError."""
    async with graph.changing():
        nodes = [node for action in actions for node in action.nodes()]
        async with graph.drained(nodes):
            prepared: list[Action] = []
            try:
                for action in actions:
                    await action.prepare()
                    prepared.append(action)
            except BaseException:
                for action in reversed(prepared):
                    await action.abort()
                raise
            for action in prepared:
                await action.commit()

# SPDX-License-Identifier: Apache-2.0
"""`transaction`: several changes that take effect together, or not at all."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from vhostblk.block.graph.actions import LateAction, perform
from vhostblk.daemon import Daemon  # noqa: TC001 (annotations are read at run time)
from vhostblk.qmp.commands import bitmaps, snapshot
from vhostblk.qmp.errors import QmpError
from vhostblk.qmp.registry import command
from vhostblk.schema.transaction import (
    ActionCompletionMode,
    Transaction,
    TransactionAction,
    TransactionProperties,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.block.graph.actions import Action
    from vhostblk.block.graph.graph import Graph


def _abort(_graph: Graph, _arguments: Any) -> Action:
    raise QmpError("Transaction aborted using Abort action")


#: Functions that create the action of each kind; they raise if it is not possible.
_MAKERS: dict[str, Callable[[Graph, Any], Action]] = {
    "abort": _abort,
    "block-dirty-bitmap-add": bitmaps.add,
    "block-dirty-bitmap-remove": bitmaps.remove,
    "block-dirty-bitmap-clear": bitmaps.clear,
    "block-dirty-bitmap-enable": bitmaps.enable,
    "block-dirty-bitmap-disable": bitmaps.disable,
    "block-dirty-bitmap-merge": bitmaps.merge,
    "blockdev-snapshot": snapshot.snapshot,
    "blockdev-snapshot-internal-sync": snapshot.snapshot_internal,
    "blockdev-snapshot-sync": snapshot.snapshot_sync,
}


def _kind(action: TransactionAction) -> str:
    return str(type(action).__struct_config__.tag)


@command("transaction")
async def transaction(daemon: Daemon, arguments: Transaction) -> None:
    """Apply all changes, or none."""
    properties = arguments.properties
    if not isinstance(properties, TransactionProperties):
        properties = TransactionProperties()
    mode = properties.completion_mode
    if mode is not ActionCompletionMode.INDIVIDUAL and arguments.actions:
        raise QmpError(
            f"Action '{_kind(arguments.actions[0])}' does not support transaction property "
            f"completion-mode = {mode.value}"
        )
    graph = daemon.graph
    makers = [partial(_MAKERS[_kind(each)], graph, each.data) for each in arguments.actions]
    await perform(graph, [LateAction(make) for make in makers])

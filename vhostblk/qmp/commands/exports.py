# SPDX-License-Identifier: Apache-2.0
"""Commands on exports, and the commands of the NBD server, which is not available yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vhostblk.block.errors import BlockError
from vhostblk.exports.errors import ExportNotFoundError
from vhostblk.qmp.registry import command, event
from vhostblk.schema.base import UNSET
from vhostblk.schema.export import (
    BlockExportDel,
    BlockExportDeleted,
    BlockExportInfo,
    BlockExportOptions,
    BlockExportRemoveMode,
    ExportStats,
    QueryExportStats,
    QueueStats,
    RequestStats,
)
from vhostblk.schema.nbd import (  # noqa: TC001 (annotations are read at run time)
    NbdServerAdd,
    NbdServerOptions,
    NbdServerRemove,
)

if TYPE_CHECKING:
    from vhostblk.daemon import Daemon

event("BLOCK_EXPORT_DELETED", BlockExportDeleted)


@command("block-export-add")
async def block_export_add(daemon: Daemon, arguments: BlockExportOptions) -> None:
    """Start an export."""
    await daemon.add_export(arguments)


@command("block-export-del")
async def block_export_del(daemon: Daemon, arguments: BlockExportDel) -> None:
    """Stop an export; BLOCK_EXPORT_DELETED follows when it is removed."""
    force = arguments.mode is BlockExportRemoveMode.HARD
    await daemon.request_export_removal(arguments.id, force=force)


@command("query-block-exports")
async def query_block_exports(daemon: Daemon) -> list[BlockExportInfo]:
    """List the exports, the newest first."""
    return [
        BlockExportInfo(
            id=export.id,
            type=export.type,
            node_name=export.backend.node.node_name,
            shutting_down=daemon.is_shutting_down(export.id),
        )
        for export in reversed(daemon.exports.values())
    ]


@command("x-vhostblk-query-export-stats", features=("unstable",))
async def query_export_stats(daemon: Daemon, arguments: QueryExportStats) -> list[ExportStats]:
    """Return the statistics of the queues of one export, or of all."""
    if isinstance(arguments.id, str):
        daemon.find_export(arguments.id)
    return [
        ExportStats(
            id=export.id,
            node_name=export.backend.node.node_name,
            clients=export.clients,
            queues=[_queue_stats(index, counts) for index, counts in export.statistics().items()],
        )
        for export in reversed(daemon.exports.values())
        if arguments.id in (UNSET, export.id)
    ]


def _queue_stats(index: int, counts: dict[str, Any]) -> QueueStats:
    described: dict[str, Any] = {
        name: RequestStats(**value) if isinstance(value, dict) else value
        for name, value in counts.items()
    }
    return QueueStats(index=index, **described)


# The NBD server. These are the errors of a daemon without a running server.


@command("nbd-server-start")
async def nbd_server_start(daemon: Daemon, arguments: NbdServerOptions) -> None:
    """Raise an error: there is no server that could be started."""
    raise BlockError("The NBD server is not available in vhostblk yet")


@command("nbd-server-stop")
async def nbd_server_stop(daemon: Daemon) -> None:
    """Raise the error of a daemon without a running server."""
    raise BlockError("NBD server not running")


@command("nbd-server-add", features=("deprecated",))
async def nbd_server_add(daemon: Daemon, arguments: NbdServerAdd) -> None:
    """Raise the error of a daemon without a running server."""
    raise BlockError("NBD server not running")


@command("nbd-server-remove", features=("deprecated",))
async def nbd_server_remove(daemon: Daemon, arguments: NbdServerRemove) -> None:
    """Raise the error for an unknown export: none is an NBD export."""
    raise ExportNotFoundError(arguments.name)

# SPDX-License-Identifier: Apache-2.0
"""From export options to an export: checks, the block backend, the class.

Export classes are imported when the first export of their type is made, because they bring heavy
libraries with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.permissions import Perm
from vhostblk.schema.export import iothread_names
from vhostblk.virtio_blk.lane import Lane, choose_lane

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.block.graph.graph import Graph
    from vhostblk.engine.iothreads import Iothreads
    from vhostblk.exports.base import Export
    from vhostblk.schema.export import BlockExportOptions


def _vhost_user_blk() -> Callable[[Any, BlockBackend, Iothreads], Export]:
    from vhostblk.exports.vhost_user_blk.export import VhostUserBlkExport

    return VhostUserBlkExport


#: What imports an export type's class, by `BlockExportType`.
EXPORT_TYPES: dict[str, Callable[[], Callable[[Any, BlockBackend, Iothreads], Export]]] = {
    "vhost-user-blk": _vhost_user_blk,
}

#: What offset and length of a client's requests are multiples of; others are refused. Default 1.
REQUEST_ALIGNMENTS = {"vhost-user-blk": 512}


async def start_export(
    options: BlockExportOptions,
    graph: Graph,
    iothreads: Iothreads,
    carried: Any = None,
    *,
    movable: bool = False,
) -> Export:
    """Attach a block backend to the node, make the export and start it.

    With `carried`, from another process's export, it takes no requests before `resume` is called;
    call it when the other process can't take requests any more. Raises VhostblkError, and then
    leaves nothing behind. After stopping the export, detach `export.backend`.
    """
    if options.fixed_iothread:
        _check_lane(options)
    async with graph.changing():
        await _activate_node(options, graph)
        backend = _attach_backend(options, graph)
    try:
        tag = options.__struct_config__.tag
        export = EXPORT_TYPES[str(tag)]()(options, backend, iothreads)
        if carried is not None:
            backend.quiesce()
        await export.start(carried, movable=movable)
    except BaseException:
        await backend.detach()
        raise
    return export


def _check_lane(options: BlockExportOptions) -> None:
    """Refuse an export that must run on its iothread and can't; others run without."""
    names = iothread_names(options)
    if names and choose_lane() is Lane.PYTHON:
        raise BlockError(
            f"Export '{options.id}' can't be moved to iothread '{names[0]}': "
            "the Python lane runs on the main thread"
        )


async def _activate_node(options: BlockExportOptions, graph: Graph) -> None:
    """Take the image back from another process; it stays so where the export then fails.

    An export that allows an inactive node does so itself, when a front-end starts a queue.
    """
    node = graph.find(options.node_name)
    if options.writable and node.read_only:
        raise BlockError("Cannot export read-only node as writable")
    if not node.active and not options.allow_inactive:
        await graph.set_active(node.node_name, active=True)


def _attach_backend(options: BlockExportOptions, graph: Graph) -> BlockBackend:
    node = graph.find(options.node_name)
    perm = Perm.CONSISTENT_READ
    shared_outside = Perm.ALL
    if options.writable:
        perm |= Perm.WRITE
        if not options.share_rw:
            shared_outside &= ~(Perm.WRITE | Perm.RESIZE)
    backend = BlockBackend(options.id, perm, Perm.ALL, shared_outside)
    backend.enable_write_cache = not options.writethrough
    backend.allow_inactive = options.allow_inactive
    backend.request_alignment = REQUEST_ALIGNMENTS.get(str(options.__struct_config__.tag), 1)
    backend.attach(graph, node)
    return backend

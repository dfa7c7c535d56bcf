# SPDX-License-Identifier: Apache-2.0
"""Creation of exports from options.

The table of export types is in `schema.export`. The class of a type is imported when its first
export is created, because it needs large libraries. Other packages add types as plug-ins (entry
point group `vhostblk.exports`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.permissions import Perm
from vhostblk.exports.base import Export
from vhostblk.imports import load
from vhostblk.schema import plugins
from vhostblk.schema.branches import Parts
from vhostblk.schema.export import EXPORT_TYPES
from vhostblk.virtio_blk.lane import Lane, choose_lane

if TYPE_CHECKING:
    from vhostblk.block.graph.graph import Graph
    from vhostblk.engine.iothreads import Iothreads
    from vhostblk.schema.export import BlockExportOptions


_CLASSES = Parts(EXPORT_TYPES, "export")


def export_class(name: str) -> type[Export]:
    """Return the class of an export type; raises BlockError or OptionError for a bad plug-in."""
    if name in _CLASSES:
        found: Any = load(_CLASSES[name])
    else:
        found = plugins.EXPORTS.find_class(name)
        if not (isinstance(found, type) and issubclass(found, Export)):
            raise BlockError(f"Export type '{name}' is no subclass of Export")
    checked: type[Export] = found
    return checked


def class_of(options: BlockExportOptions) -> type[Export]:
    """Return the class for an export's options; errors as for `export_class`."""
    return export_class(str(options.__struct_config__.tag))


async def start_export(
    options: BlockExportOptions,
    graph: Graph,
    iothreads: Iothreads,
    carried: Any = None,
    *,
    movable: bool = False,
) -> Export:
    """Attach a block backend to the node, create the export and start it.

    With `carried`, from another process's export, the export takes no requests before `resume` is
    called; call it when the other process can't take requests any more. Raises VhostblkError, and
    then leaves nothing behind. After stopping the export, detach `export.backend`.
    """
    if options.fixed_iothread:
        _check_lane(options)
    async with graph.changing():
        await _activate_node(options, graph)
        made_of = class_of(options)
        backend = _attach_backend(options, made_of, graph)
    try:
        export = made_of(options, backend, iothreads)
        if carried is not None:
            backend.quiesce()
        await export.start(carried, movable=movable)
    except BaseException:
        await backend.detach()
        raise
    return export


def _check_lane(options: BlockExportOptions) -> None:
    """Refuse an export that can't run on the iothread that `fixed-iothread` requires."""
    names = options.iothread_names()
    if names and choose_lane() is Lane.PYTHON:
        raise BlockError(
            f"Export '{options.id}' can't be moved to iothread '{names[0]}': "
            "the Python lane runs on the main thread"
        )


async def _activate_node(options: BlockExportOptions, graph: Graph) -> None:
    """Activate an inactive node; it stays active if the export then fails.

    An export that allows an inactive node activates it when a front-end starts a queue.
    """
    node = graph.find(options.node_name)
    if options.writable and node.read_only:
        raise BlockError("Cannot export read-only node as writable")
    if not node.active and not options.allow_inactive:
        await graph.set_active(node.node_name, active=True)


def _attach_backend(
    options: BlockExportOptions, made_of: type[Export], graph: Graph
) -> BlockBackend:
    node = graph.find(options.node_name)
    perm = Perm.CONSISTENT_READ
    shared_outside = Perm.ALL
    if options.writable:
        perm |= Perm.WRITE
        if not options.shares_writing():
            shared_outside &= ~(Perm.WRITE | Perm.RESIZE)
    backend = BlockBackend(options.id, perm, Perm.ALL, shared_outside)
    backend.enable_write_cache = not options.writethrough
    backend.allow_inactive = options.allow_inactive
    backend.request_alignment = made_of.request_alignment
    backend.attach(graph, node)
    return backend

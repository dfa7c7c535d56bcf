# SPDX-License-Identifier: Apache-2.0
"""`Daemon`: composition. It owns the objects, the block graph and the exports.

    async with Daemon(
        blockdevs=["file,node-name=disk,filename=disk.img"],
        exports=["vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path=v.sock"],
    ):
        await something()

Options come in any form: schema structs, dictionaries as in QMP, keyval or JSON text as on the
command line. Everything runs on the event loop that entered the daemon. Closing takes exports
first (clients go, requests in flight finish, caches are flushed), then the graph; a failure on the
way doesn't keep the rest from being closed.
"""

from __future__ import annotations

import logging
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

from vhostblk.block.errors import BlockError
from vhostblk.block.graph import Graph
from vhostblk.engine.iothread import IothreadOptions
from vhostblk.engine.iothreads import Iothreads
from vhostblk.errors import VhostblkError
from vhostblk.events import EventBus
from vhostblk.exports.hints import qemu_arguments
from vhostblk.exports.registry import start_export
from vhostblk.schema.export import iothread_names
from vhostblk.schema.options import blockdev_options, export_options, object_options

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from vhostblk.block.node import BlockNode
    from vhostblk.exports.base import Export
    from vhostblk.schema.objects import ObjectOptions
    from vhostblk.schema.options import Options

logger = logging.getLogger(__name__)


class Daemon:
    """A storage daemon: made, entered, changed at will, left."""

    def __init__(
        self,
        *,
        objects: Iterable[Options] = (),
        blockdevs: Iterable[Options] = (),
        exports: Iterable[Options] = (),
    ) -> None:
        #: What happens to nodes and exports; monitors listen.
        self.events = EventBus()
        self.graph = Graph()
        self._initial = (list(objects), list(blockdevs), list(exports))
        self._iothreads = Iothreads()
        self._objects: dict[str, ObjectOptions] = {}
        self._exports: dict[str, Export] = {}
        self._hints: dict[str, list[str]] = {}

    async def __aenter__(self) -> Self:
        objects, blockdevs, exports = self._initial
        try:
            for options in objects:
                self.add_object(options)
            for options in blockdevs:
                await self.add_blockdev(options)
            for options in exports:
                await self.add_export(options)
        except BaseException:
            await self._close_quietly()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await self.close()
        else:
            await self._close_quietly()

    @property
    def objects(self) -> Mapping[str, ObjectOptions]:
        """The objects by id."""
        return MappingProxyType(self._objects)

    @property
    def exports(self) -> Mapping[str, Export]:
        """The running exports by id."""
        return MappingProxyType(self._exports)

    def add_object(self, options: Options) -> None:
        """Add an object, which exports may then refer to."""
        checked = object_options(options)
        if checked.id in self._objects:
            raise VhostblkError(
                f"attempt to add duplicate property '{checked.id}' to object (type 'container')"
            )
        self._objects[checked.id] = checked
        self._iothreads.define(
            checked.id,
            IothreadOptions(
                poll_max_ns=checked.poll_max_ns,
                poll_grow=checked.poll_grow,
                poll_shrink=checked.poll_shrink,
                aio_max_batch=checked.aio_max_batch,
                pool_threads=checked.thread_pool_max,
            ),
        )

    async def add_blockdev(self, options: Options) -> BlockNode:
        """Open a block node and what it is defined to lie on."""
        return await self.graph.add(blockdev_options(options))

    async def remove_blockdev(self, node_name: str) -> None:
        """Close a node that nothing uses."""
        await self.graph.remove(node_name)

    async def add_export(self, options: Options) -> Export:
        """Start an export; clients may connect once this returns."""
        checked = export_options(options)
        if checked.id in self._exports:
            raise BlockError(f"Block export id '{checked.id}' is already in use")
        self.graph.find(checked.node_name)
        for iothread in iothread_names(checked):
            if iothread not in self._objects:
                raise BlockError(f'iothread "{iothread}" not found')
        hint = qemu_arguments(checked)  # before the export takes the descriptor over
        export = await start_export(checked, self.graph, self._iothreads)
        self._exports[checked.id] = export
        if hint is not None:
            self._hints[checked.id] = hint
        return export

    async def remove_export(self, export_id: str) -> None:
        """Stop an export: disconnect clients, finish their requests, flush."""
        export = self._exports.pop(export_id, None)
        if export is None:
            raise BlockError(f"Export '{export_id}' is not found")
        self._hints.pop(export_id, None)
        try:
            await export.stop()
        finally:
            await export.backend.detach()

    def connect_hints(self) -> dict[str, list[str]]:
        """Return the QEMU arguments that connect a virtual machine, by export id."""
        return dict(self._hints)

    async def close(self) -> None:
        """Stop all exports, the last first, and close all nodes.

        Raises the first error, once everything is closed; others are logged.
        """
        errors: list[Exception] = []
        for export_id in reversed(list(self._exports)):
            try:
                await self.remove_export(export_id)
            except Exception as error:
                errors.append(error)
        try:
            await self.graph.close()
        except Exception as error:
            errors.append(error)
        self._iothreads.close()
        self._objects.clear()
        for other in errors[1:]:
            logger.error("while closing: %s", other)
        if errors:
            raise errors[0]

    async def _close_quietly(self) -> None:
        """Close on the way out of another error, which is the one to be told."""
        try:
            await self.close()
        except Exception as error:
            logger.error("while closing: %s", error)

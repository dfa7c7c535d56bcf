# SPDX-License-Identifier: Apache-2.0
"""`Daemon`: composition. It owns the objects, the block graph and the exports.

    async with Daemon(
        blockdevs=["file,node-name=disk,filename=disk.img"],
        exports=["vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path=v.sock"],
    ):
        await something()

Options may be schema structs, dictionaries as in QMP, and keyval or JSON text as on the command
line. The daemon runs on the event loop that entered it. It closes exports first (it disconnects
clients, completes requests in flight and flushes caches), and then the graph. If one of them fails,
the others are closed nevertheless.

What can't be done raises a `VhostblkError`, whose text is complete. Its class is the kind of the
error; `node`, `option`, `file`, `operation` and `errno` are its context, as far as it is known:

    try:
        await daemon.add_blockdev("driver=file,node-name=disk,filename=disk.img")
    except VhostblkError as error:
        if error.errno == errno.ENOENT:
            create(error.file)
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Protocol, Self

import msgspec

from vhostblk.block.errors import BlockError
from vhostblk.block.graph.graph import Graph
from vhostblk.chardev.registry import Chardevs
from vhostblk.engine.iothreads import Iothreads, IothreadStuckError
from vhostblk.errors import error_context, log_error
from vhostblk.events import EventBus
from vhostblk.exports.errors import ExportNotFoundError
from vhostblk.exports.registry import class_of, start_export
from vhostblk.exports.totals import total
from vhostblk.jobs.registry import Jobs
from vhostblk.objects.registry import Objects
from vhostblk.schema.export import BlockExportDeleted
from vhostblk.schema.options import (
    blockdev_options,
    export_options,
    object_options,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping
    from types import TracebackType

    from vhostblk.block.graph.node import BlockNode
    from vhostblk.chardev.base import Chardev
    from vhostblk.crypto.keys import Keys
    from vhostblk.exports.base import Export
    from vhostblk.objects.base import UserObject
    from vhostblk.objects.tree import QomObject
    from vhostblk.schema.export import BlockExportOptions
    from vhostblk.schema.options import Options
    from vhostblk.schema.reservations import PrInAction, PrOutAction, PrStatus, PrType

logger = logging.getLogger(__name__)

#: Seconds until it is looked whether what is being closed waits for an iothread that is stuck.
STUCK_GRACE = 5.0


class Control(Protocol):
    """The interface of `vhostblk.qmp.monitors.Monitors`, by which clients control a daemon."""

    def take_commands(self) -> None:
        """Begin to take commands: the daemon is complete."""

    async def stop_commands(self) -> None:
        """Take no more commands and wait for those that run; events are still sent."""

    def close(self) -> None:
        """Detach from the clients."""


class _ExportEntry(msgspec.Struct):
    """An export and its state, from its start until it is removed."""

    options: BlockExportOptions
    #: None while the export starts.
    export: Export | None = None
    hint: list[str] | None = None
    #: The task that stops it; its result is the error, if any.
    removal: asyncio.Task[Exception | None] | None = None


class Daemon:
    """A storage daemon: an asynchronous context manager."""

    def __init__(
        self,
        *,
        objects: Iterable[Options] = (),
        blockdevs: Iterable[Options] = (),
        exports: Iterable[Options] = (),
    ) -> None:
        #: Events of nodes and exports; monitors listen.
        self.events = EventBus()
        self.graph = Graph(self.events)
        #: Background jobs.
        self.jobs = Jobs(self.events)
        self._initial = (list(objects), list(blockdevs), list(exports))
        self._iothreads = Iothreads()
        self._objects = Objects(self.graph, self._iothreads)
        self.graph.pr_managers.objects = self._objects.by_id
        self._exports: dict[str, _ExportEntry] = {}
        #: The character devices by id.
        self.chardevs = Chardevs(self._objects.keys)
        #: The monitors, if there are any. The daemon closes them when it is closed.
        self.control: Control | None = None
        #: Held while an in-band QMP command is executed.
        self.command_lock = asyncio.Lock()
        #: Monitors take no commands yet, because not all options are processed.
        self.holds_commands = False
        #: Exports keep what they need for moving to another process with their front-ends; set
        #: before there are any exports.
        self.movable = False
        #: Set by `request_stop`; the code that entered the daemon then leaves it.
        self.stop_requested = asyncio.Event()

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
    def objects(self) -> Mapping[str, UserObject]:
        """The objects by id."""
        return self._objects.by_id

    @property
    def exports(self) -> dict[str, Export]:
        """The exports by id, including those that are being stopped."""
        return {
            export_id: entry.export
            for export_id, entry in self._exports.items()
            if entry.export is not None
        }

    @property
    def keys(self) -> Keys:
        """The secrets and the authorization that objects offer."""
        return self._objects.keys

    def add_object(self, options: Options) -> None:
        """Add an object, which exports and nodes may then refer to."""
        with error_context(operation="object-add"):
            self._objects.add(object_options(options))

    async def add_object_in_background(self, options: Options) -> None:
        """Add an object; files are read on a thread, while the daemon serves."""
        await self._objects.add_in_background(object_options(options))

    def remove_object(self, object_id: str) -> None:
        """Remove an object that no export and no node uses."""
        exports = self._exports.values()
        named = any(object_id in entry.options.iothread_names() for entry in exports)
        self._objects.remove(object_id, in_use=named)

    def object_tree(self) -> QomObject:
        """Return the current object tree."""
        from vhostblk.chardev.qom import chardev_object
        from vhostblk.objects.tree import QomObject

        objects = {object_id: found.show() for object_id, found in self.objects.items()}
        chardevs = {device.label: chardev_object(device) for device in self.chardevs}
        return QomObject(
            "container",
            {
                "backend": QomObject("container"),
                "objects": QomObject("container", objects),
                "chardevs": QomObject("container", chardevs),
            },
        )

    async def add_blockdev(self, options: Options) -> BlockNode:
        """Open a block node and its children."""
        with error_context(operation="blockdev-add"):
            return await self.graph.add(blockdev_options(options))

    async def remove_blockdev(self, node_name: str) -> None:
        """Close a node without users."""
        await self.graph.remove(node_name)

    async def read_reservations(self, node_name: str, action: PrInAction) -> PrStatus:
        """Return the registrations, the reservation or the capabilities of a node's device.

        The node is a `host_device` with a `pr-manager`.
        """
        from vhostblk.block.reservable import read_reservations

        return await read_reservations(self.graph.find(node_name), action)

    async def change_reservations(
        self,
        node_name: str,
        action: PrOutAction,
        *,
        key: int = 0,
        service_action_key: int = 0,
        type: PrType | None = None,  # noqa: A002 (QMP's name)
        aptpl: bool = False,
        all_target_ports: bool = False,
    ) -> None:
        """Change registrations, or the reservation, of the device of a node.

        Raises VhostblkError if the device refuses, for example because another one has reserved it.
        """
        from vhostblk.block.reservable import Change, change_reservations

        change = Change(action, key, service_action_key, type, aptpl, all_target_ports)
        await change_reservations(self.graph.find(node_name), change)

    def create_image(self, job_id: str, options: Options) -> None:
        """Start a job that creates an image."""
        from vhostblk.block.create import CreateJob
        from vhostblk.schema.options import create_options

        self.jobs.start(CreateJob(job_id, create_options(options), self.graph))

    async def add_export(self, options: Options, carried: Any = None) -> Export:
        """Start an export; clients can connect once this returns.

        With `carried`, the export continues that of another process, once it is resumed.
        """
        with error_context(operation="block-export-add"):
            return await self._add_export(export_options(options), carried)

    async def _add_export(self, checked: BlockExportOptions, carried: Any) -> Export:
        if checked.id in self._exports:
            raise BlockError(f"Block export id '{checked.id}' is already in use")
        self.graph.find(checked.node_name)
        for iothread in checked.iothread_names():
            self._iothreads.check(iothread)
        entry = self._exports[checked.id] = _ExportEntry(checked)
        try:
            entry.hint = class_of(checked).connect_hint(checked)
            entry.export = await start_export(
                checked, self.graph, self._iothreads, carried, movable=self.movable
            )
        except BaseException:
            del self._exports[checked.id]
            raise
        return entry.export

    def find_export(self, export_id: str) -> Export:
        """Return an export that has been started; raises ExportNotFoundError."""
        entry = self._exports.get(export_id)
        if entry is None or entry.export is None:
            raise ExportNotFoundError(export_id)
        return entry.export

    def export_options(self, export_id: str) -> BlockExportOptions:
        """Return the options of an export."""
        return self._exports[export_id].options

    async def suspend_export(self, export_id: str) -> Any:
        """Suspend an export, which keeps its clients; return its state for `add_export`."""
        entry = self._exports[export_id]
        if entry.removal is not None:
            raise BlockError(f"Export '{export_id}' is already shutting down")
        export = entry.export
        assert export is not None
        carried = await export.suspend()
        del self._exports[export_id]
        await export.backend.detach()
        return carried

    def is_shutting_down(self, export_id: str) -> bool:
        """Return whether an export is being removed."""
        entry = self._exports.get(export_id)
        return entry is not None and entry.removal is not None

    async def request_export_removal(self, export_id: str, *, force: bool) -> None:
        """Begin to stop an export; the event BLOCK_EXPORT_DELETED follows when it is removed.

        Without `force`, this is refused while clients are connected. With it, they are
        disconnected after this has returned.
        """
        export, entry = self.find_export(export_id), self._exports[export_id]
        if entry.removal is not None:
            raise BlockError(f"Export '{export_id}' is already shutting down")
        in_use = export.clients > 0
        if in_use and not force:
            raise BlockError(f"export '{export_id}' still in use")
        removal = self._begin_removal(export, entry)
        removal.add_done_callback(_log_result)
        if not in_use:
            await asyncio.shield(removal)

    async def remove_export(self, export_id: str) -> None:
        """Stop an export: disconnect clients, complete their requests, flush."""
        export, entry = self.find_export(export_id), self._exports[export_id]
        removal = entry.removal or self._begin_removal(export, entry)
        error = await asyncio.shield(removal)
        if error is not None:
            raise error

    def _begin_removal(self, export: Export, entry: _ExportEntry) -> asyncio.Task[Exception | None]:
        entry.removal = asyncio.get_running_loop().create_task(
            self._remove(export), name=f"removal of export {export.id}"
        )
        return entry.removal

    async def _remove(self, export: Export) -> Exception | None:
        try:
            try:
                await export.stop()
            finally:
                await export.backend.detach()
        except Exception as error:
            return error
        else:
            return None
        finally:
            del self._exports[export.id]
            self.events.emit("BLOCK_EXPORT_DELETED", BlockExportDeleted(id=export.id))

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Return the statistics of each export since it started, by its id, in plain types.

        "queues" maps a queue's index to its counters, "total" adds them up. Counters are `invalid`,
        `upcalls`, `sweeps`, `notified` and `kicks`; those of `read`, `write`, `flush` and `unmap`
        are `operations` (that succeeded), `bytes`, `failed`, `total_ns` and a histogram `latency`,
        whose n-th number counts requests that took at least 2**n ns and less than 2**(n+1).
        """
        described = {}
        for export_id, export in self.exports.items():
            queues = export.statistics()
            described[export_id] = {"queues": queues, "total": total(queues.values())}
        return described

    def connect_hints(self) -> dict[str, list[str]]:
        """Return the QEMU arguments that connect a virtual machine, by export id."""
        return {
            export_id: entry.hint
            for export_id, entry in self._exports.items()
            if entry.hint is not None and entry.export is not None
        }

    async def add_chardev(self, options: Options) -> Chardev:
        """Create a character device; return once it has a peer, if it is to wait for that."""
        from vhostblk.chardev.options import chardev_options

        with error_context(operation="chardev-add"):
            checked = chardev_options(options)
            return await self.chardevs.add(checked.id, checked.backend)

    async def remove_chardev(self, chardev_id: str) -> None:
        """Remove a character device without a user."""
        await self.chardevs.remove(chardev_id)

    def take_commands(self) -> None:
        """Take commands from clients; this ends `holds_commands`."""
        self.holds_commands = False
        if self.control is not None:
            self.control.take_commands()

    def request_stop(self) -> None:
        """Ask the code that entered the daemon to leave it."""
        self.stop_requested.set()

    async def close(self) -> None:
        """Stop all exports, the newest first, and close all nodes.

        Raises the first error, once everything is closed; others are logged. Raises
        IothreadStuckError if an iothread is stuck: then tasks that wait for it are left.
        """
        errors: list[Exception] = []
        if self.control is not None:
            await self.control.stop_commands()
        for export_id in reversed(list(self.exports)):
            if export_id not in self._exports:  # its removal has begun already
                continue
            try:
                await self._unless_stuck(self.remove_export(export_id))
            except Exception as error:
                errors.append(error)
        for part in (self.jobs, self.graph):
            try:
                await self._unless_stuck(part.close())
            except Exception as error:
                errors.append(error)
        if self.control is not None:
            self.control.close()  # only now: clients get the events of the exports
            self.control = None
        await self.chardevs.close()
        self.graph.throttle_groups.close()
        self._iothreads.close()
        self._objects.clear()
        errors.sort(key=lambda error: not isinstance(error, IothreadStuckError))
        for other in errors[1:]:
            log_error(logger, "while closing", other)
        if errors:
            raise errors[0]

    async def _unless_stuck(self, closing: Coroutine[object, object, None]) -> None:
        """Close something, but don't wait for ever for an iothread that is stuck.

        What has to do with another iothread ends within the time that is left for it then.
        """
        task = asyncio.create_task(closing)
        stuck: list[str] = []
        while not task.done():
            await asyncio.wait({task}, timeout=STUCK_GRACE)
            if stuck and not task.done():
                raise IothreadStuckError(stuck[0])
            stuck = self._iothreads.stuck
        await task

    async def _close_quietly(self) -> None:
        """Close after another error, which is the one to be reported."""
        try:
            await self.close()
        except Exception as error:
            log_error(logger, "while closing", error)


def _log_result(removal: asyncio.Task[Exception | None]) -> None:
    """Log why an export failed to stop, if nothing waits for the result."""
    if not removal.cancelled() and (error := removal.result()) is not None:
        log_error(logger, removal.get_name(), error)

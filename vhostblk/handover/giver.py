# SPDX-License-Identifier: Apache-2.0
"""The running daemon's side: it waits for takers, and continues as before if one fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from vhostblk.block.errors import ImageLockedError
from vhostblk.block.graph.edge import flush_node
from vhostblk.errors import VhostblkError, errors_as, log_error, log_failure, reason
from vhostblk.handover import configuration
from vhostblk.handover.errors import HandoverError, RefusedError
from vhostblk.handover.leash import Holder
from vhostblk.handover.wire import (
    END_PATIENCE,
    PATIENCE,
    VERSION,
    Channel,
    ChardevListening,
    Commit,
    Configuration,
    ExportState,
    Failure,
    Fds,
    Guard,
    Hello,
    Listening,
    Prepared,
    Ready,
    State,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.block.graph.locking import LockGuard
    from vhostblk.daemon import Daemon
    from vhostblk.exports.base import Carried
    from vhostblk.net.listener import Listener

logger = logging.getLogger(__name__)

#: Seconds until a taker that could not be accepted is accepted again.
_ACCEPT_RETRY = 1.0

#: Time limit in seconds for requests in flight, and then for flushing, while all clients wait.
PAUSE_LIMIT = 10.0

_CREDENTIALS = struct.Struct("=3i")  # struct ucred: pid, uid, gid


class Giver:
    """Server for takers: the first one that succeeds gets the work, and the daemon stops."""

    def __init__(self, daemon: Daemon, listener: Listener, leave: Callable[[], object]) -> None:
        """`leave()` releases what else only one process can own: the process ID file."""
        self._daemon = daemon
        self._listener = listener
        self._leave = leave
        self._task: asyncio.Task[None] | None = None
        #: The taker serves; this process may touch nothing any more.
        self.given = False

    def start(self) -> None:
        """Wait for takers."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="hand-over")
        self._task.add_done_callback(log_failure)

    async def close(self) -> None:
        """Stop waiting."""
        if self._task is not None and not self.given:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._listener.close()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.given:
            try:
                connection, _ = await loop.sock_accept(self._listener.socket)
            except OSError as error:  # out of descriptors or memory: the taker stays in the backlog
                log_error(logger, "hand-over: can't accept another process", error)
                await asyncio.sleep(_ACCEPT_RETRY)
                continue
            if not _is_trusted(connection):
                logger.warning("hand-over: refused: another user")
                connection.close()
                continue
            channel = Channel(connection)
            try:
                await self._give(channel)
            except VhostblkError as error:
                logger.warning("hand-over failed: %s", error)
                with contextlib.suppress(HandoverError):
                    await channel.send(Failure(reason=str(error)))
            except Exception as error:
                logger.error("hand-over failed: internal error", exc_info=error)
            finally:
                channel.close()
        self._daemon.request_stop()

    async def _give(self, channel: Channel) -> None:
        hello, fds = await channel.receive(Hello)
        fds.close()
        if hello.version != VERSION:
            raise HandoverError(f"the taker has version {hello.version}, and this is {VERSION}")
        daemon = self._daemon
        async with daemon.command_lock:
            blockdevs = configuration.blockdevs(daemon)
            exports = configuration.exports(daemon)
            await channel.send(*self._describe(blockdevs, exports))
            await _expect(channel, Prepared)
            await _flush(daemon, PATIENCE)  # so that the flush in the pause is short
            carried: dict[str, Carried] = {}
            guards: list[LockGuard] = []
            holder = Holder()
            told = False  # whether the taker may own what only one process can own
            try:
                guards = _make_guards(daemon)
                since = time.monotonic()
                await _suspend_exports(daemon, carried)
                # Flush while the giver can still resume: closing reports no failure.
                await _flush(daemon, PAUSE_LIMIT)
                await daemon.graph.close()
                told = True
                await channel.send(*_state(carried, guards, holder.leash, since))
                holder.given()
                await _expect(channel, Ready)
                self._leave()
                await channel.send(Commit())  # fails if the taker has exited
                self.given = True
            except BaseException as error:
                if not self.given:
                    holder.let_go()
                    if told and not isinstance(error, RefusedError):
                        await channel.wait_for_end()
                    await self._go_on(blockdevs, exports, carried)
                raise
            finally:
                for guard in guards:
                    guard.close()
                holder.let_go()
            self._let_go(carried)
            with contextlib.suppress(HandoverError):  # the service manager must be notified first
                await channel.receive(Commit)

    def _describe(
        self, blockdevs: list[dict[str, Any]], exports: list[dict[str, Any]]
    ) -> tuple[Configuration, Fds]:
        from vhostblk.chardev.socket import SocketChardev

        fds = Fds()
        chardevs = [
            ChardevListening(
                chardev=device.label,
                address=device.listens_at,
                sockets=[_listening(listener, fds) for listener in device.listeners],
            )
            for device in self._daemon.chardevs
            if isinstance(device, SocketChardev)
        ]
        described = Configuration(
            objects=configuration.objects(self._daemon),
            blockdevs=blockdevs,
            exports=exports,
            chardevs=chardevs,
            handover=_listening(self._listener, fds),
        )
        return described, fds

    async def _go_on(
        self,
        blockdevs: list[dict[str, Any]],
        exports: list[dict[str, Any]],
        carried: dict[str, Carried],
    ) -> None:
        """Open all nodes again, and serve the front-ends as before."""
        daemon = self._daemon
        there = {node.node_name for node in daemon.graph}
        try:
            for blockdev in blockdevs:
                if blockdev["node-name"] not in there:
                    await _open_again(daemon, blockdev)
            for export in exports:
                if (former := carried.get(export["id"])) is not None:
                    former.required = False  # a failure affects one front-end only
                    again = await daemon.add_export(export, former)
                    again.resume()
        except VhostblkError as error:
            logger.error("hand-over: can't continue as before: %s", error)
            daemon.request_stop()  # a supervisor restarts the daemon, and front-ends reconnect
        else:
            logger.info("hand-over: continuing as before")

    def _let_go(self, carried: dict[str, Carried]) -> None:
        """Close everything that the taker owns now; keep the files."""
        self._listener.own(None)
        for device in self._daemon.chardevs:
            for listener in device.listeners:
                listener.own(None)
        for one in carried.values():
            for listener in one.listeners:
                listener.own(None)
            one.close()


def _is_trusted(connection: socket.socket) -> bool:
    """Return whether the peer is our own user, or root."""
    size = _CREDENTIALS.size
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return uid in (0, os.geteuid())


async def _expect(channel: Channel, kind: type[Prepared | Ready]) -> None:
    _, fds = await channel.receive(kind)
    fds.close()


async def _open_again(daemon: Daemon, blockdev: dict[str, Any]) -> None:
    """Open a node; try again, because the kernel may release a dead taker's locks late."""
    deadline = time.monotonic() + END_PATIENCE
    while True:
        try:
            await daemon.add_blockdev(blockdev)
        except ImageLockedError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)
        else:
            return


async def _suspend_exports(daemon: Daemon, carried: dict[str, Carried]) -> None:
    """Suspend all exports at once, into `carried`; raises VhostblkError if one fails.

    Exports that have not finished by then continue as before.
    """
    tasks = {
        export_id: asyncio.create_task(daemon.suspend_export(export_id), name=f"pause {export_id}")
        for export_id in daemon.exports
    }
    if not tasks:
        return
    try:
        await asyncio.wait(tasks.values(), timeout=PAUSE_LIMIT, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for export_id, task in tasks.items():
            if export_id in daemon.exports:
                task.cancel()
        await asyncio.wait(tasks.values())
        finished = {each: task for each, task in tasks.items() if not task.cancelled()}
        failures = [error for task in finished.values() if (error := task.exception())]
        for export_id, task in finished.items():
            if task.exception() is None:
                carried[export_id] = task.result()
    for error in failures:
        raise error
    for export_id in tasks:
        if export_id not in finished:
            raise HandoverError(
                f"export '{export_id}' has not finished its requests in {PAUSE_LIMIT:.0f} seconds"
            )


async def _flush(daemon: Daemon, limit: float) -> None:
    """Flush all nodes; raises HandoverError, also after `limit` seconds.

    The flush is not cancelled then, but continues in the background.
    """
    flushing = asyncio.create_task(_flush_nodes(daemon), name="hand-over")
    done, _ = await asyncio.wait({flushing}, timeout=limit)
    if not done:
        flushing.add_done_callback(log_failure)
        raise HandoverError(f"flushing the images takes more than {limit:.0f} seconds")
    flushing.result()


async def _flush_nodes(daemon: Daemon) -> None:
    with errors_as(HandoverError, "flush failed"):
        for node in daemon.graph:
            await flush_node(node)


def _make_guards(daemon: Daemon) -> list[LockGuard]:
    """Keep the images locked; raises HandoverError if one can't be opened again."""
    guards: list[LockGuard] = []
    for node in daemon.graph:
        try:
            guard = node.make_guard()
        except (OSError, VhostblkError) as error:
            for made in guards:
                made.close()
            raise HandoverError(f"node '{node.node_name}': {reason(error)}") from error
        if guard is not None:
            guard.trust()
            guards.append(guard)
    return guards


def _listening(listener: Listener, fds: Fds) -> Listening:
    return Listening(fd=fds.add(listener.socket.fileno()), path=listener.path)


def _state(
    carried: dict[str, Carried],
    guards: list[LockGuard],
    leash: int,
    since: float,
) -> tuple[State, Fds]:
    fds = Fds()
    exports = [
        ExportState(id=export_id, state=one.encode(fds)) for export_id, one in carried.items()
    ]
    kept = [Guard(fd=fds.add(guard.fd), locked=sorted(guard.locked)) for guard in guards]
    return State(exports=exports, guards=kept, leash=fds.add(leash), since=since), fds

# SPDX-License-Identifier: Apache-2.0
"""The new daemon's side: it recreates what the running one has, and replaces it."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import msgspec

from vhostblk.block.graph.locking import LockGuard
from vhostblk.block.registry import driver_class
from vhostblk.errors import VhostblkError, errors_as, reason
from vhostblk.exports.registry import export_class
from vhostblk.handover.errors import HandoverError
from vhostblk.handover.leash import Leash
from vhostblk.handover.wire import (
    VERSION,
    Channel,
    Commit,
    Configuration,
    Failure,
    Fds,
    Hello,
    Prepared,
    Ready,
    State,
)
from vhostblk.net.listener import Listener

if TYPE_CHECKING:
    from vhostblk.daemon import Daemon
    from vhostblk.exports.base import Carried
    from vhostblk.handover.wire import ExportState, Listening

logger = logging.getLogger(__name__)

#: Errors that mean that there is no daemon to take over from.
_NOBODY = (errno.ENOENT, errno.ECONNREFUSED)


async def find(path: str) -> Taker | None:
    """Connect to the daemon that listens at `path`; None if there is none.

    Raises HandoverError.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        if error.errno in _NOBODY:
            logger.info("hand-over: no daemon at %s to take over from", path)
            return None
        raise HandoverError(reason(error)) from error
    channel = Channel(sock)
    try:
        await channel.send(Hello(version=VERSION))
        configuration, fds = await channel.receive(Configuration)
    except HandoverError:
        channel.close()
        raise
    return Taker(channel, configuration, fds)


class Taker:
    """Replacement of a daemon: `begin`, then the monitors, `finish`, and at last `release`."""

    def __init__(self, channel: Channel, configuration: Configuration, fds: Fds) -> None:
        self._channel = channel
        self._configuration = configuration
        self._fds = fds
        #: Listeners, and the socket files that they own once the other process is done.
        self._listeners: list[tuple[Listener, str | None]] = []
        self._guards: list[LockGuard] = []
        #: The path and the socket where the other process waited for takers.
        self.handover = self._listener(configuration.handover, fds)
        self.handover_path = configuration.handover.path

    @property
    def definitions(self) -> dict[str, list[dict[str, Any]]]:
        """The definitions that are taken over, by the name of the option."""
        taken = self._configuration
        return {"object": taken.objects, "blockdev": taken.blockdevs, "export": taken.exports}

    def _listener(self, listening: Listening, fds: Fds) -> Listener:
        listener = Listener(socket.socket(fileno=fds.take(listening.fd)))
        self._listeners.append((listener, listening.path))
        return listener

    async def begin(self, daemon: Daemon) -> None:
        """Create everything that doesn't disturb the other process; raises VhostblkError."""
        try:
            for chardev in self._configuration.chardevs:
                daemon.chardevs.inherited[chardev.chardev, chardev.address] = [
                    self._listener(listening, self._fds) for listening in chardev.sockets
                ]
            for options in self._configuration.objects:
                daemon.add_object(options)
            for blockdev in self._configuration.blockdevs:
                await asyncio.to_thread(driver_class, blockdev["driver"])
            for export in self._configuration.exports:
                await export_class(export["type"]).prepare()
        except VhostblkError as error:
            await self._fail(error)
            raise

    async def finish(self, daemon: Daemon) -> None:
        """Take over; if this raises VhostblkError, the other process continues."""
        for unwanted in daemon.chardevs.inherited.values():
            for listener in unwanted:
                listener.close()
        daemon.chardevs.inherited.clear()
        try:
            await self._channel.send(Prepared())
            state, fds = await self._channel.receive(State)
        except VhostblkError as error:
            await self._fail(error)
            raise
        await self._build_on_leash(daemon, state, fds)
        await self._wait_for_commit()
        for export in daemon.exports.values():
            export.resume()
        waited = (time.monotonic() - state.since) * 1000
        logger.info("hand-over: taken over; front-ends waited for %.0f ms", waited)
        for listener, path in self._listeners:
            if listener.socket.fileno() >= 0:
                listener.own(path)
        self._close_guards()

    async def _build_on_leash(self, daemon: Daemon, state: State, fds: Fds) -> None:
        leash = None
        try:
            leash = Leash(fds.take(state.leash))
            leash.put_on()
            await self._build(daemon, state, fds)
        except VhostblkError as error:
            await self._undo(daemon)
            if leash is not None:
                leash.take_off()
            await self._fail(error)
            raise
        finally:
            fds.close()
        leash.take_off()

    async def _wait_for_commit(self) -> None:
        try:
            await self._channel.send(Ready())
            _, fds = await self._channel.receive(Commit)
            fds.close()
        except VhostblkError as error:
            # The other process may continue, so this one must not touch the images, not even to
            # close them. The kernel closes all files.
            logger.error("hand-over: %s", error)
            logging.shutdown()
            os._exit(1)

    def release(self) -> None:
        """Let the other process exit, which waits for this."""
        self._channel.close()

    async def _build(self, daemon: Daemon, state: State, fds: Fds) -> None:
        for guard in state.guards:
            taken = LockGuard(fds.take(guard.fd), frozenset(guard.locked))
            self._guards.append(taken)
            taken.trust()
        carried = {export.id: self._carried(export, fds) for export in state.exports}
        for blockdev in self._configuration.blockdevs:
            await daemon.add_blockdev(blockdev)
        for export in self._configuration.exports:
            if export["id"] not in carried:
                raise HandoverError(f"export '{export['id']}' is missing")
            await daemon.add_export(export, carried[export["id"]])

    def _carried(self, export: ExportState, fds: Fds) -> Carried:
        types = {each["id"]: each["type"] for each in self._configuration.exports}
        if export.id not in types:
            raise HandoverError(f"export '{export.id}' is not known")
        with errors_as(HandoverError, f"export '{export.id}'", of=msgspec.DecodeError):
            carried, paths = export_class(types[export.id]).decode(export.state, fds)
        self._listeners += zip(carried.listeners, paths, strict=True)
        return carried

    async def _undo(self, daemon: Daemon) -> None:
        """Close the images, before the other process opens them again."""
        for export_id in list(daemon.exports):
            await daemon.remove_export(export_id)
        await daemon.graph.close()

    async def _fail(self, error: VhostblkError) -> None:
        try:
            await self._channel.send(Failure(reason=str(error)))
        except HandoverError:
            pass
        self._close_guards()
        self._channel.close()
        for listener, _ in self._listeners:
            listener.close()

    def _close_guards(self) -> None:
        for guard in self._guards:
            guard.close()
        self._guards.clear()
        self._fds.close()

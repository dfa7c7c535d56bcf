# SPDX-License-Identifier: Apache-2.0
"""Character device on a stream socket: server or client.

A server serves one client at a time; the next ones wait in the backlog until it has left. A client
with a reconnect interval tries for ever, in the background.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

from vhostblk.chardev.base import ChardevError
from vhostblk.chardev.stream import StreamChardev
from vhostblk.errors import log_failure, reason
from vhostblk.net import addresses
from vhostblk.net.errors import SocketError
from vhostblk.schema.base import UNSET
from vhostblk.schema.socket import FdSocketAddressMembers
from vhostblk.trace import points as trace

if TYPE_CHECKING:
    from vhostblk.net.addresses import Address
    from vhostblk.net.listener import Listener
    from vhostblk.schema.chardev import ChardevSocket

logger = logging.getLogger(__name__)

#: Seconds until accepting is tried again when the process is out of file descriptors.
_ACCEPT_RETRY = 1.0


class SocketChardev(StreamChardev):
    """`socket`."""

    def __init__(self, label: str, options: ChardevSocket) -> None:
        super().__init__(label)
        check(options)
        self._address: Address = options.addr.data
        self._server = options.server is not False
        self._wait = options.wait is True
        self._nodelay = options.nodelay
        self._reconnect = _reconnect_seconds(options)
        self._listeners: list[Listener] = []
        self._client: asyncio.Future[None] | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._complained = False
        self._closing = False
        self._filename = self._disconnected_filename()

    @property
    def filename(self) -> str:
        """How `query-chardev` describes the device."""
        return self._filename

    @property
    def address(self) -> Address:
        """Where it listens, or connects to."""
        return self._address

    @property
    def listeners(self) -> list[Listener]:
        """The sockets on which it waits for peers."""
        return self._listeners

    @property
    def listens_at(self) -> str:
        """Where, as `query-chardev` says it."""
        return addresses.filename(self._address)

    def inherit(self, listeners: list[Listener]) -> None:
        """Use sockets that listen already; before `start`."""
        self._listeners = listeners

    async def start(self) -> None:
        """Listen and perhaps wait for a client, or connect."""
        if not self._server:
            if self._reconnect:
                self._connect_in_background()
            else:
                self._adopt(await addresses.connect(self._address))
            return
        self._listeners = self._listeners or await addresses.listen(self._address)
        self._address = addresses.local_address(self._listeners[0].socket, self._address)
        self._filename = self._disconnected_filename()
        self._start_accepting()
        if self._wait:
            await self._wait_for_client()

    async def close(self) -> None:
        """Hang up, listen no more and remove the socket file."""
        self._closing = True
        self._stop_accepting()
        if self._retry is not None:
            self._retry.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        await super().close()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    async def _wait_for_client(self) -> None:
        logger.warning("waiting for connection on: %s", self._filename)
        self._client = asyncio.get_running_loop().create_future()
        try:
            await self._client
        except asyncio.CancelledError:
            await self.close()
            raise
        finally:
            self._client = None

    def _start_accepting(self) -> None:
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.add_reader(listener.socket, self._accept, listener.socket)

    def _stop_accepting(self) -> None:
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.remove_reader(listener.socket)

    def _accept(self, listening: socket.socket) -> None:
        try:
            connection, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # out of descriptors or memory: the client stays in the backlog
            logger.warning("chardev '%s': can't accept a client: %s", self.label, reason(error))
            self._stop_accepting()
            self._retry = asyncio.get_running_loop().call_later(
                _ACCEPT_RETRY, self._start_accepting
            )
            return
        self._stop_accepting()
        self._adopt(connection)
        if self._client is not None and not self._client.done():
            self._client.set_result(None)

    def _adopt(self, connection: socket.socket) -> None:
        """Begin the conversation with a new peer."""
        connection.setblocking(False)
        if self._nodelay and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._filename = addresses.connected_filename(
            connection, self._address, server=self._server
        )
        if trace.chr_socket_connect.enabled:
            trace.chr_socket_connect(self.label, self._filename)
        fd = connection.fileno()
        self._begin(fd, fd, connection.close)

    def disconnect(self) -> None:
        """Hang up on the peer, and turn to the next one."""
        if self._stream is None:
            return
        if trace.chr_socket_disconnect.enabled:
            trace.chr_socket_disconnect(self.label)
        super().disconnect()
        if self._closing:
            return
        self._filename = self._disconnected_filename()
        if self._server:
            self._start_accepting()
        elif self._reconnect:
            self._retry_later()

    def _retry_later(self) -> None:
        self._retry = asyncio.get_running_loop().call_later(
            self._reconnect, self._connect_in_background
        )

    def _connect_in_background(self) -> None:
        self._connecting = asyncio.get_running_loop().create_task(
            self._try_to_connect(), name=f"chardev {self.label}: connect"
        )
        self._connecting.add_done_callback(log_failure)

    async def _try_to_connect(self) -> None:
        try:
            connection = await addresses.connect(self._address)
        except SocketError as error:
            if not self._complained:
                self._complained = True
                logger.warning("Unable to connect character device %s: %s", self.label, error)
            self._retry_later()
        else:
            self._complained = False
            self._adopt(connection)

    def _disconnected_filename(self) -> str:
        role = ",server=on" if self._server else ""
        return f"disconnected:{addresses.filename(self._address)}{role}"


def check(options: ChardevSocket) -> None:
    """Refuse combinations that make no sense, or are not available; raises ChardevError."""
    server = options.server is not False
    reconnects = options.reconnect is not UNSET or options.reconnect_ms is not UNSET
    if isinstance(options.addr.data, FdSocketAddressMembers) and reconnects:
        raise ChardevError("'reconnect' option is incompatible with 'fd' address type")
    if options.tls_authz is not UNSET and options.tls_creds is UNSET:
        raise ChardevError("'tls_authz' option requires 'tls_creds' option")
    if server and reconnects:
        raise ChardevError("'reconnect' option is incompatible with socket in server listen mode")
    if not server and options.websocket:
        raise ChardevError("Websocket client is not implemented")
    if not server and options.wait is not UNSET:
        raise ChardevError("'wait' option is incompatible with socket in client connect mode")
    if options.reconnect is not UNSET and options.reconnect_ms is not UNSET:
        raise ChardevError("'reconnect' and 'reconnect-ms' are mutually exclusive")
    for name in ("tls_creds", "telnet", "tn3270", "websocket"):
        if getattr(options, name) not in (UNSET, False):
            raise ChardevError(
                f"Option '{name.replace('_', '-')}' of sockets is not available in vhostblk"
            )


def _reconnect_seconds(options: ChardevSocket) -> float:
    """Return the seconds between two attempts to connect; 0: there is one only."""
    if isinstance(options.reconnect, int):
        return float(max(options.reconnect, 0))
    if isinstance(options.reconnect_ms, int):
        return max(options.reconnect_ms, 0) / 1000
    return 0.0

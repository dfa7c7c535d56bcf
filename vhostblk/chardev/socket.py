# SPDX-License-Identifier: Apache-2.0
"""Character device on a stream socket: server or client.

A server serves one client at a time; other clients wait in the backlog. A client with a reconnect
interval connects again and again, in the background.

With TLS or WebSocket a connection begins with a handshake. While no client is served, several
handshakes may run at the same time, so a client that is silent delays no other client. The first
client with a complete handshake is served; the others wait for their turns.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from typing import TYPE_CHECKING

from vhostblk.chardev.base import ChardevError
from vhostblk.chardev.stream import StreamChardev
from vhostblk.errors import VhostblkError, log_failure, reason
from vhostblk.net import addresses
from vhostblk.net.handshake import Requirements, negotiate
from vhostblk.schema.base import UNSET
from vhostblk.schema.socket import (
    FdSocketAddressMembers,
    InetSocketAddressMembers,
    UnixSocketAddressMembers,
    VsockSocketAddressMembers,
)
from vhostblk.trace import points as trace

if TYPE_CHECKING:
    from vhostblk.crypto.keys import Keys
    from vhostblk.net.addresses import Address
    from vhostblk.net.codec import Stack
    from vhostblk.net.listener import Listener
    from vhostblk.net.tls.credentials import Credentials
    from vhostblk.schema.chardev import ChardevSocket

logger = logging.getLogger(__name__)

#: Seconds until accepting is tried again after the process ran out of file descriptors.
_ACCEPT_RETRY = 1.0

#: Maximum number of handshakes at a time; a further client replaces the oldest one.
MAX_HANDSHAKES = 32


class SocketChardev(StreamChardev):
    """The backend `socket`."""

    def __init__(self, label: str, options: ChardevSocket, keys: Keys) -> None:
        super().__init__(label)
        self._keys = keys
        self._address: Address = options.addr.data
        self._server = options.server is not False
        self._websocket = options.websocket
        self._credentials_id = _text(options.tls_creds)
        self._authz_id = _text(options.tls_authz)
        #: The credentials of the last look-up, for use after their object was removed.
        self._credentials: Credentials | None = None
        self._find_credentials()
        check(options)
        self._warn_of_options_without_effect()
        self._wait = options.wait is True
        self._nodelay = options.nodelay
        self._reconnect = _reconnect_seconds(options)
        self._listeners: list[Listener] = []
        self._client: asyncio.Future[None] | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._complained = False
        self._closing = False
        #: Connections in their handshakes, oldest first; connections that wait for their turns.
        self._handshakes: dict[asyncio.Task[None], None] = {}
        self._ready: deque[tuple[socket.socket, Stack]] = deque()
        self._filename = self._disconnected_filename()

    @property
    def filename(self) -> str:
        """The description of the device in `query-chardev`."""
        return self._filename

    @property
    def address(self) -> Address:
        """The address at which it listens, or to which it connects."""
        return self._address

    @property
    def listeners(self) -> list[Listener]:
        """The sockets on which it waits for peers."""
        return self._listeners

    @property
    def listens_at(self) -> str:
        """The address in the form of `query-chardev`."""
        return addresses.filename(self._address, self._protocol)

    @property
    def _protocol(self) -> str:
        return "websocket" if self._websocket else "tcp"

    def inherit(self, listeners: list[Listener]) -> None:
        """Use sockets that listen already; called before `start`."""
        self._listeners = listeners

    async def start(self) -> None:
        """Listen and, if asked to, wait for a client; or connect."""
        if not self._server:
            if self._reconnect:
                self._connect_in_background()
            else:
                self._welcome(await addresses.connect(self._address))
            return
        self._listeners = self._listeners or await addresses.listen(self._address)
        self._address = addresses.local_address(self._listeners[0].socket, self._address)
        self._filename = self._disconnected_filename()
        self._start_accepting()
        if self._wait:
            await self._wait_for_client()

    async def close(self) -> None:
        """Disconnect, stop listening and remove the socket file."""
        self._closing = True
        self._stop_accepting()
        if self._retry is not None:
            self._retry.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        for task in self._handshakes:
            task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)
        for connection, codec in self._ready:
            codec.close()
            connection.close()
        self._ready.clear()
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
        self._welcome(connection)

    def _welcome(self, connection: socket.socket) -> None:
        """Begin the handshake with a new peer, or the conversation if there is no handshake."""
        connection.setblocking(False)
        try:
            wanted = self._requirements()
        except VhostblkError as error:
            connection.close()
            self._log.warning("%s", error)
            return
        if wanted.nothing:
            self._adopt(connection)
            return
        if len(self._handshakes) >= MAX_HANDSHAKES:
            next(iter(self._handshakes)).cancel()
        task = asyncio.get_running_loop().create_task(
            self._shake_hands(connection, wanted), name=f"chardev {self.label}: handshake"
        )
        self._handshakes[task] = None
        task.add_done_callback(self._handshakes.pop)
        task.add_done_callback(log_failure)

    def _requirements(self) -> Requirements:
        """Return the requirements of a new connection; raises VhostblkError."""
        self._find_credentials()
        hostname = None
        if not self._server and isinstance(self._address, InetSocketAddressMembers):
            hostname = self._address.host
        return Requirements(self._credentials, self._authz_id, hostname, self._websocket)

    def _find_credentials(self) -> None:
        """Look up the credentials, which may have been replaced; raises CredentialsError."""
        if self._credentials_id is None:
            return
        if self._credentials is None or self._keys.knows(self._credentials_id):
            from vhostblk.net.tls.credentials import find_credentials

            self._credentials = find_credentials(
                self._keys, self._credentials_id, server=self._server
            )

    async def _shake_hands(self, connection: socket.socket, wanted: Requirements) -> None:
        try:
            codec = await negotiate(connection, self._keys, wanted)
        except (VhostblkError, OSError) as error:
            connection.close()
            self._log.warning("%s", reason(error))
            return
        except BaseException:
            connection.close()
            raise
        if self._stream is not None or self._closing:
            self._ready.append((connection, codec))
        else:
            self._adopt(connection, codec)

    def _adopt(self, connection: socket.socket, codec: Stack | None = None) -> None:
        """Begin the conversation with a new peer."""
        if self._server:
            self._stop_accepting()
            if self._retry is not None:
                self._retry.cancel()
        if self._nodelay and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._filename = addresses.connected_filename(
            connection, self._address, server=self._server, protocol=self._protocol
        )
        if trace.chr_socket_connect.enabled:
            trace.chr_socket_connect(self.label, self._filename)
        fd = connection.fileno()
        self._begin(fd, fd, connection.close, codec)
        if self._client is not None and not self._client.done():
            self._client.set_result(None)

    def disconnect(self) -> None:
        """Disconnect the peer, and serve the next one."""
        if self._stream is None:
            return
        if trace.chr_socket_disconnect.enabled:
            trace.chr_socket_disconnect(self.label)
        super().disconnect()
        if self._closing:
            return
        self._filename = self._disconnected_filename()
        if self._ready:
            asyncio.get_running_loop().call_soon(self._adopt_next)
        elif self._server:
            self._start_accepting()
        elif self._reconnect:
            self._retry_later()

    def _adopt_next(self) -> None:
        """Serve a client that has waited."""
        if self._ready and self._stream is None and not self._closing:
            self._adopt(*self._ready.popleft())

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
            wanted = self._requirements()
            codec = None
            try:
                if not wanted.nothing:
                    codec = await negotiate(connection, self._keys, wanted)
            except BaseException:
                connection.close()
                raise
        except (VhostblkError, OSError) as error:
            if not self._complained:
                self._complained = True
                logger.warning(
                    "Unable to connect character device %s: %s", self.label, reason(error)
                )
            self._retry_later()
        else:
            self._complained = False
            self._adopt(connection, codec)

    def _disconnected_filename(self) -> str:
        role = ",server=on" if self._server else ""
        return f"disconnected:{addresses.filename(self._address, self._protocol)}{role}"

    def _warn_of_options_without_effect(self) -> None:
        credentials = self._credentials
        if self._authz_id is not None and credentials and not credentials.verifies_names:
            logger.warning(
                "warning: chardev '%s': tls-authz has no effect, as the credentials '%s' don't"
                " verify names",
                self.label,
                self._credentials_id,
            )


def check(options: ChardevSocket) -> None:
    """Check the combination of options; raises ChardevError."""
    server = options.server is not False
    reconnects = options.reconnect is not UNSET or options.reconnect_ms is not UNSET
    address, encrypted = options.addr.data, options.tls_creds is not UNSET
    if isinstance(address, FdSocketAddressMembers):
        if reconnects:
            raise ChardevError("'reconnect' option is incompatible with 'fd' address type")
        if encrypted and not server:
            raise ChardevError(
                "'tls_creds' option is incompatible with 'fd' address type as client"
            )
    for kind, name in ((UnixSocketAddressMembers, "unix"), (VsockSocketAddressMembers, "vsock")):
        if encrypted and isinstance(address, kind):
            raise ChardevError(f"'tls_creds' option is incompatible with '{name}' address type")
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
    for name in ("telnet", "tn3270"):
        if getattr(options, name):
            raise ChardevError(
                f"Option '{name.replace('_', '-')}' of sockets is not available in vhostblk"
            )


def _text(option: object) -> str | None:
    return option if isinstance(option, str) else None


def _reconnect_seconds(options: ChardevSocket) -> float:
    """Return the seconds between two attempts to connect; 0: only one attempt."""
    if isinstance(options.reconnect, int):
        return float(max(options.reconnect, 0))
    if isinstance(options.reconnect_ms, int):
        return max(options.reconnect_ms, 0) / 1000
    return 0.0

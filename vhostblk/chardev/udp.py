# SPDX-License-Identifier: Apache-2.0
"""Character device on datagrams; it always has a peer."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from vhostblk.chardev.base import READ_SIZE, Chardev, ChardevError
from vhostblk.errors import reason
from vhostblk.net.addresses import resolve
from vhostblk.schema.base import UnsetType
from vhostblk.schema.socket import InetSocketAddressMembers

if TYPE_CHECKING:
    from vhostblk.schema.chardev import ChardevUdp

#: Maximum size of a datagram: it fits IPv4 with some headers.
_DATAGRAM = 60000


class UdpChardev(Chardev):
    """`udp`; data that does not fit the socket's buffer is lost, as in the network."""

    def __init__(self, label: str, options: ChardevUdp) -> None:
        super().__init__(label)
        self._remote = options.remote.data
        self._local = options.local.data if not isinstance(options.local, UnsetType) else None
        self._socket: socket.socket | None = None
        self._open = True

    @property
    def filename(self) -> str:
        """The description of the device in `query-chardev`."""
        return "udp"

    async def start(self) -> None:
        """Bind the socket, and connect it to its peer."""
        remote, local = self._remote, self._local
        if not isinstance(remote, InetSocketAddressMembers) or not isinstance(
            local, InetSocketAddressMembers | None
        ):
            raise ChardevError("socket type unsupported for datagram")
        family, kind, protocol, _, name = (await resolve(remote, socket.SOCK_DGRAM, passive=False))[
            0
        ]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if local is not None:
                for found, *_, own_name in await resolve(local, socket.SOCK_DGRAM, passive=True):
                    if found == family:
                        sock.bind(own_name)
                        break
            sock.connect(name)
        except OSError as error:
            sock.close()
            raise ChardevError(f"Failed to bind socket: {reason(error)}") from error
        except BaseException:
            sock.close()
            raise
        self._socket = sock

    async def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        self._open = False

    def pause_reading(self) -> None:
        """Leave datagrams in the socket's buffer."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)

    def resume_reading(self) -> None:
        """Undo `pause_reading`."""
        if self._socket is not None and self.frontend is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._on_readable, self._socket)

    def _on_readable(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(READ_SIZE)
        except OSError:  # spurious wake-up, or an ICMP error for an earlier datagram
            return
        if data and self.frontend is not None:
            self.frontend.received(data)

    def _write(self, data: bytes) -> bool:
        if self._socket is not None:
            try:
                for start in range(0, len(data), _DATAGRAM):
                    self._socket.send(data[start : start + _DATAGRAM])
            except OSError:  # the buffer is full, or the peer does not listen
                pass
        return True

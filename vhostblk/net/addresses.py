# SPDX-License-Identifier: Apache-2.0
"""Socket addresses: resolved, listened at, connected to, written down.

Internet names are resolved on a thread; nothing here blocks the event loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vhostblk.errors import reason
from vhostblk.net.errors import SocketError
from vhostblk.net.listener import MAX_PATH, Listener, UnixAddress
from vhostblk.net.listener import listen as listen_unix
from vhostblk.schema.socket import (
    FdSocketAddressMembers,
    InetSocketAddressMembers,
    UnixSocketAddressMembers,
    VsockSocketAddressMembers,
)

if TYPE_CHECKING:
    Address = (
        InetSocketAddressMembers
        | UnixSocketAddressMembers
        | VsockSocketAddressMembers
        | FdSocketAddressMembers
    )

#: Clients that may wait while one is being served.
_BACKLOG = 16

_LAST_PORT = 0xFFFF


async def listen(address: Address) -> list[Listener]:
    """Listen at an address, which may stand for several; raises SocketError."""
    if isinstance(address, InetSocketAddressMembers):
        return await _listen_inet(address)
    if isinstance(address, UnixSocketAddressMembers) and not address.abstract:
        return [listen_unix(UnixAddress(address.path))]
    if isinstance(address, FdSocketAddressMembers):
        sock = inherited_socket(address.fd)
        what, name = "Failed to listen on fd socket", None
    else:
        sock, name = _unbound(address)
        what = f"Failed to bind socket to {_describe(address)}"
    try:
        if name is not None:
            sock.bind(name)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise SocketError(f"{what}: {reason(error)}") from error
    return [Listener(sock)]


async def connect(address: Address) -> socket.socket:
    """Connect to an address; raises SocketError."""
    if isinstance(address, FdSocketAddressMembers):
        return inherited_socket(address.fd)
    if isinstance(address, InetSocketAddressMembers):
        return await _connect_inet(address)
    sock, name = _unbound(address)
    return await _connect_to(sock, name, _describe(address))


def inherited_socket(text: str) -> socket.socket:
    """Take over a socket that the daemon was started with, by its number; raises SocketError."""
    if not (text.isascii() and text.isdecimal()):
        raise SocketError(f"Unable to parse FD number {text}")
    try:
        fd = int(text)
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except (OSError, OverflowError):
        is_socket = False
    if not is_socket:
        raise SocketError(f"File descriptor '{text}' is not a socket")
    sock = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    sock.setblocking(False)
    return sock


async def resolve(
    address: InetSocketAddressMembers, kind: socket.SocketKind, *, passive: bool
) -> list[tuple[Any, ...]]:
    """Return what getaddrinfo(3) says; raises SocketError."""
    if address.port.isdecimal() and int(address.port) > _LAST_PORT:
        raise SocketError(
            f"address resolution failed for {address.host}:{address.port}: "
            f"a port is {_LAST_PORT} at most"
        )
    flags = socket.AI_PASSIVE if passive else socket.AI_V4MAPPED | socket.AI_ADDRCONFIG
    if address.numeric:
        flags |= socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    family = _family(address)
    try:
        return await asyncio.get_running_loop().getaddrinfo(
            address.host or None, address.port, family=family, type=kind, flags=flags
        )
    except (OSError, OverflowError, UnicodeError) as error:
        raise SocketError(
            f"address resolution failed for {address.host}:{address.port}: {reason(error)}"
        ) from error


def _family(address: InetSocketAddressMembers) -> socket.AddressFamily:
    ipv4, ipv6 = address.ipv4, address.ipv6
    if ipv4 is False and ipv6 is False:
        raise SocketError("Cannot disable IPv4 and IPv6 at same time")
    if ipv4 is True and ipv6 is True:
        return socket.AF_UNSPEC
    if ipv6 is True or ipv4 is False:
        return socket.AF_INET6
    if ipv4 is True or ipv6 is False:
        return socket.AF_INET
    return socket.AF_UNSPEC


async def _listen_inet(address: InetSocketAddressMembers) -> list[Listener]:
    """Listen at every address that a name stands for; one is enough."""
    listeners: list[Listener] = []
    failure: OSError | None = None
    for family, kind, protocol, _, name in await resolve(address, socket.SOCK_STREAM, passive=True):
        last = address.to if isinstance(address.to, int) else name[1]
        for port in range(name[1], min(last, _LAST_PORT) + 1):
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError as error:  # a family that this machine does not have
                failure = error
                break
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((name[0], port, *name[2:]))
                sock.listen(_BACKLOG)
            except OSError as error:
                sock.close()
                failure = error
            else:
                listeners.append(Listener(sock))
                break
    if not listeners:
        why = "no address" if failure is None else reason(failure)
        raise SocketError(f"Failed to bind socket: {why}") from failure
    return listeners


async def _connect_inet(address: InetSocketAddressMembers) -> socket.socket:
    failure: SocketError | None = None
    for family, kind, protocol, _, name in await resolve(
        address, socket.SOCK_STREAM, passive=False
    ):
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:
            failure = SocketError(f"Failed to create socket: {reason(error)}")
            continue
        if address.keep_alive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        try:
            return await _connect_to(sock, name, _describe(address))
        except SocketError as error:
            failure = error
    raise failure or SocketError(f"Failed to connect to '{_describe(address)}'")


async def _connect_to(sock: socket.socket, name: Any, description: str) -> socket.socket:
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, name)
        sock.getpeername()  # a full backlog looks like success until here
    except OSError as error:
        sock.close()
        why = reason(error.errno or error)  # asyncio puts the address into `strerror`
        raise SocketError(f"Failed to connect to '{description}': {why}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _unbound(
    address: UnixSocketAddressMembers | VsockSocketAddressMembers,
) -> tuple[socket.socket, Any]:
    """Return a new socket and the name to bind it or connect it to."""
    if isinstance(address, VsockSocketAddressMembers):
        numbers = address.cid, address.port
        if not all(text.isascii() and text.isdecimal() for text in numbers):
            raise SocketError(f"Failed to parse cid '{address.cid}' or port '{address.port}'")
        return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM), tuple(map(int, numbers))
    path = os.fsencode(address.path)
    if b"\0" in path:
        raise SocketError(f"UNIX socket path {address.path!r} contains a null byte")
    if len(path) > MAX_PATH:
        raise SocketError(
            f"UNIX socket path '{address.path}' is too long: must be less than {MAX_PATH + 1} bytes"
        )
    if address.abstract:
        path = b"\0" + path
        if not address.tight:
            path = path.ljust(MAX_PATH + 1, b"\0")
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path


def _describe(address: Address) -> str:
    if isinstance(address, InetSocketAddressMembers):
        return f"{address.host}:{address.port}"
    if isinstance(address, VsockSocketAddressMembers):
        return f"{address.cid}:{address.port}"
    return address.path if isinstance(address, UnixSocketAddressMembers) else address.fd


def filename(address: Address, protocol: str = "tcp") -> str:
    """Write an address as `query-chardev` shows it; `protocol` is what is spoken over TCP."""
    if isinstance(address, InetSocketAddressMembers):
        return f"{protocol}:{address.host}:{address.port}"
    if isinstance(address, VsockSocketAddressMembers):
        return f"vsock:{address.cid}:{address.port}"
    if isinstance(address, FdSocketAddressMembers):
        return f"fd:{address.fd}"
    abstract = ",abstract=on" if address.abstract else ""
    tight = ",tight=on" if address.abstract and address.tight else ""
    return f"unix:{address.path}{abstract}{tight}"


def local_address(sock: socket.socket, otherwise: Address) -> Address:
    """Return the address that a socket is really bound to."""
    with suppress(OSError):
        name = sock.getsockname()
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            return InetSocketAddressMembers(host=name[0], port=str(name[1]), numeric=True)
        if isinstance(otherwise, FdSocketAddressMembers) and isinstance(name, str) and name:
            return UnixSocketAddressMembers(path=name)
    return otherwise


def connected_filename(
    sock: socket.socket, address: Address, *, server: bool, protocol: str = "tcp"
) -> str:
    """Write a conversation as `query-chardev` shows it."""
    role = ",server=on" if server else ""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return filename(address) + role
    try:
        local, remote = sock.getsockname(), sock.getpeername()
    except OSError:  # gone already
        return filename(address, protocol) + role
    left, right = ("[", "]") if sock.family == socket.AF_INET6 else ("", "")
    return (
        f"{protocol}:{left}{local[0]}{right}:{local[1]}{role}"
        f" <-> {left}{remote[0]}{right}:{remote[1]}"
    )

# SPDX-License-Identifier: Apache-2.0
"""Listening sockets: bound to a path, or inherited from the parent process."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import NamedTuple

from vhostblk.errors import errors_as, reason
from vhostblk.net.errors import ListenError
from vhostblk.systemd import activated_fd

#: `sun_path` of `struct sockaddr_un` is 108 bytes, the last of them a zero.
MAX_PATH = 107

#: Front-ends that may wait while one is being served.
_BACKLOG = 128


class UnixAddress(NamedTuple):
    """Listen on a path in the file system (`addr.type=unix`).

    Whoever may write the file may connect. `mode` are its permissions (None: as the umask says),
    `group` the name or number of its group.
    """

    path: str
    mode: int | None = None
    group: str | None = None


class FdAddress(NamedTuple):
    """Listen on an inherited descriptor (`addr.type=fd`).

    `str` is its number, or the name that systemd gives it.
    """

    str: str


ListenAddress = UnixAddress | FdAddress


class Listener:
    """A non-blocking listening socket, and the file that has to go with it."""

    def __init__(self, sock: socket.socket, path: str | None = None) -> None:
        sock.setblocking(False)
        self.socket = sock
        #: What `close` removes; None: nothing.
        self.path: str | None = None
        self._identity: tuple[int, int] | None = None
        self.own(path)

    def own(self, path: str | None) -> None:
        """Have `close` remove the socket file at `path`, or (None) none."""
        self.path = path
        self._identity = _identity(path) if path is not None else None

    def close(self) -> None:
        """Stop listening; remove the socket file unless another has taken its place."""
        self.socket.close()
        if self.path is not None and self._identity is not None:
            if _identity(self.path) == self._identity:
                with contextlib.suppress(OSError):
                    Path(self.path).unlink()
            self.path = None


def listen(address: ListenAddress) -> Listener:
    """Listen at `address`; raises ListenError."""
    if isinstance(address, FdAddress):
        return _listen_fd(address.str)
    return _listen_unix(address.path, address)


def _listen_unix(path: str, address: UnixAddress) -> Listener:
    encoded = os.fsencode(path)
    if not encoded:
        raise ListenError("UNIX socket path is empty")
    if b"\0" in encoded:
        raise ListenError(f"UNIX socket path {path!r} contains a null byte")
    if len(encoded) > MAX_PATH:
        raise ListenError(
            f"UNIX socket path '{path}' is too long: must be less than {MAX_PATH + 1} bytes"
        )
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
    except OSError as error:
        sock.close()
        raise ListenError(f"Failed to bind socket to {path}: {reason(error)}", file=path) from error
    # The absolute path, because a daemon changes its directory before it removes the file.
    listener = Listener(sock, str(Path(path).absolute()))
    try:
        _set_permissions(path, address)  # nobody can connect before the next line
        sock.listen(_BACKLOG)
    except ListenError:
        listener.close()
        raise
    except OSError as error:
        listener.close()
        raise ListenError(
            f"Failed to listen on socket {path}: {reason(error)}", file=path
        ) from error
    return listener


def _set_permissions(path: str, address: UnixAddress) -> None:
    if address.group is not None:
        try:
            os.chown(path, -1, _group_number(address.group))
        except (OSError, OverflowError) as error:
            why = reason(error) if isinstance(error, OSError) else "no such group"
            raise ListenError(
                f"Failed to give socket {path} to group {address.group}: {why}", file=path
            ) from error
    if address.mode is not None:
        Path(path).chmod(address.mode)


def _group_number(group: str) -> int:
    if group.isascii() and group.isdecimal():
        return int(group)
    import grp

    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):  # ValueError: a name with a null byte
        raise ListenError(f"group '{group}' not found") from None


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on any more; refuse anything else that is there."""
    with errors_as(ListenError, f"Failed to bind socket to {path}", file=path):
        try:
            mode = os.stat(path, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"Failed to bind socket to {path}: the file exists and is not a socket")
    if _is_alive(path):
        raise ListenError(f"Failed to bind socket to {path}: another process listens there")
    with errors_as(ListenError, f"Failed to remove stale socket {path}", file=path):
        Path(path).unlink(missing_ok=True)


def _is_alive(path: str) -> bool:
    """Tell whether a process holds the socket at `path`.

    The probe is a datagram socket: the kernel refuses to connect it to a stream socket (EPROTOTYPE)
    before the other process notices anything, while a stale file gives ECONNREFUSED.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True


def _listen_fd(name: str) -> Listener:
    fd = int(name) if name.isascii() and name.isdecimal() else activated_fd(name)
    if fd is None:
        raise ListenError(f"Unable to parse FD number {name}")
    try:
        mode = os.fstat(fd).st_mode
    except (OSError, OverflowError) as error:
        raise ListenError(f"File descriptor '{name}' is not open") from error
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"File descriptor '{name}' is not a socket")
    # A duplicate, so that the descriptor stays as it was where the start fails.
    sock = socket.socket(fileno=os.dup(fd))
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.close()
        raise ListenError(f"File descriptor '{name}' is not a UNIX stream socket")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise ListenError(f"File descriptor '{name}' is not a listening socket")
    os.close(fd)
    return Listener(sock)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        info = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return info.st_dev, info.st_ino

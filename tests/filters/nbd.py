# SPDX-License-Identifier: Apache-2.0
"""A plain NBD client (`doc/proto.md` of the NBD project), to do I/O on QEMU's storage daemon.

Unlike virtio-blk it tells errors apart, takes requests of any alignment, and asks for the block
status. One request at a time.
"""

from __future__ import annotations

import errno
import socket
import struct
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_OPTION_MAGIC = b"IHAVEOPT"
_REPLY_MAGIC = 0x3E889045565A9
_REQUEST_MAGIC = 0x25609513
_SIMPLE_MAGIC = 0x67446698
_CHUNK_MAGIC = 0x668E33EF

_OPT_GO, _OPT_STRUCTURED, _OPT_SET_META = 7, 8, 10
_REP_ACK, _REP_INFO, _REP_META = 1, 3, 4
_CHUNK_DATA, _CHUNK_HOLE, _CHUNK_STATUS = 1, 2, 5
_CHUNK_ERROR = 0x8000
_DONE = 1


class Command(IntEnum):
    """Request types."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6
    STATUS = 7


class Flag(IntFlag):
    """Flags of requests."""

    NONE = 0
    FUA = 1
    NO_HOLE = 2
    DONT_FRAGMENT = 4
    FAST_ZERO = 16


#: The errnos that NBD has; QEMU's server turns EACCES and all others into EINVAL.
ERRNOS = frozenset(
    {
        errno.EPERM,
        errno.EIO,
        errno.ENOMEM,
        errno.EINVAL,
        errno.ENOSPC,
        errno.EOVERFLOW,
        errno.ENOTSUP,
        errno.ESHUTDOWN,
    }
)
_MAPPED = {errno.EROFS: errno.EPERM, errno.EFBIG: errno.ENOSPC, errno.EDQUOT: errno.ENOSPC}


def as_sent(code: int) -> int:
    """Return what QEMU's server makes of an errno."""
    code = _MAPPED.get(code, code)
    return code if code in ERRNOS else errno.EINVAL


class NbdClient:
    """A connection to one export; errors of requests are raised as OSError."""

    def __init__(self, path: Path, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._cookie = 0
        try:
            self._socket.connect(str(path))
            self._negotiate(name.encode())
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> NbdClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        farewell = struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, Command.DISCONNECT, 0, 0, 0)
        try:
            self._socket.sendall(farewell)
        finally:
            self._socket.close()

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            if not part:
                raise ConnectionError("the NBD server has closed the connection")
            data += part
        return data

    # Handshake.

    def _negotiate(self, name: bytes) -> None:
        assert self._receive(16) == b"NBDMAGIC" + _OPTION_MAGIC
        self._receive(2)
        self._socket.sendall(struct.pack(">I", 3))
        self._option(_OPT_STRUCTURED, b"")
        context = b"base:allocation"
        named = struct.pack(">I", len(name)) + name
        query = named + struct.pack(">II", 1, len(context)) + context
        assert any(kind == _REP_META for kind, _ in self._option(_OPT_SET_META, query))
        for kind, data in self._option(_OPT_GO, named + struct.pack(">H", 0)):
            if kind == _REP_INFO and data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:])

    def _option(self, option: int, data: bytes) -> list[tuple[int, bytes]]:
        self._socket.sendall(_OPTION_MAGIC + struct.pack(">II", option, len(data)) + data)
        replies: list[tuple[int, bytes]] = []
        while True:
            magic, _, kind, size = struct.unpack(">QIII", self._receive(20))
            assert magic == _REPLY_MAGIC
            data = self._receive(size)
            if kind & 1 << 31:
                raise ConnectionError(f"option {option}: {data.decode(errors='replace')}")
            if kind == _REP_ACK:
                return replies
            replies.append((kind, data))

    # Requests.

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes."""
        result = bytearray(length)
        for kind, data in self._request(Command.READ, offset, length, Flag.DONT_FRAGMENT):
            if kind in (_CHUNK_DATA, _CHUNK_HOLE):
                start = struct.unpack(">Q", data[:8])[0] - offset
                if kind == _CHUNK_DATA:
                    result[start : start + len(data) - 8] = data[8:]
        return bytes(result)

    def write(self, offset: int, data: bytes, flags: Flag = Flag.NONE) -> None:
        """Write bytes."""
        self._request(Command.WRITE, offset, len(data), flags, data)

    def write_zeroes(self, offset: int, length: int, flags: Flag = Flag.NO_HOLE) -> None:
        """Write zeroes; without NO_HOLE, by deallocating where that is possible."""
        self._request(Command.WRITE_ZEROES, offset, length, flags)

    def trim(self, offset: int, length: int) -> None:
        """Discard a range."""
        self._request(Command.TRIM, offset, length)

    def flush(self) -> None:
        """Make writes durable."""
        self._request(Command.FLUSH, 0, 0)

    def status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Describe a range: (length, 1: a hole + 2: reads as zeroes), one after the other."""
        runs = []
        for kind, data in self._request(Command.STATUS, offset, length):
            if kind == _CHUNK_STATUS:
                runs += list(struct.iter_unpack(">II", data[4:]))
        return runs

    def _request(
        self,
        command: Command,
        offset: int,
        length: int,
        flags: Flag = Flag.NONE,
        payload: bytes = b"",
    ) -> list[tuple[int, bytes]]:
        self._cookie += 1
        header = (_REQUEST_MAGIC, flags, command, self._cookie, offset, length)
        self._socket.sendall(struct.pack(">IHHQQI", *header) + payload)
        chunks = []
        failed = 0
        while True:
            (magic,) = struct.unpack(">I", self._receive(4))
            if magic == _SIMPLE_MAGIC:
                failed, _ = struct.unpack(">IQ", self._receive(12))
                break
            assert magic == _CHUNK_MAGIC
            chunk_flags, kind, _, size = struct.unpack(">HHQI", self._receive(16))
            data = self._receive(size)
            if kind & _CHUNK_ERROR:
                (failed,) = struct.unpack(">I", data[:4])
            chunks.append((kind, data))
            if chunk_flags & _DONE:
                break
        if failed:
            raise OSError(failed, errno.errorcode.get(failed, "?"))
        return chunks

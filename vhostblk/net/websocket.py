# SPDX-License-Identifier: Apache-2.0
"""The server's side of WebSocket (RFC 6455), without I/O, with the limits of QEMU's.

Requests are for `/`, have at most 32 headers and fit 4096 bytes. Only binary messages are taken;
their boundaries mean nothing, as they carry a stream.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from email.utils import formatdate

from vhostblk.net.codec import Codec
from vhostblk.net.errors import WebSocketError

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_REQUEST = 4096
_MAX_HEADERS = 32
_KEY_LENGTH = 24
_VERSION = b"13"

_CONTINUATION, _BINARY, _CLOSE, _PING, _PONG = 0, 2, 8, 9, 10
_FIN, _MASKED, _CONTROL = 0x80, 0x80, 0x08
#: A length of 7 bits that says that one of 16 or 64 bits follows, and the size of that.
_LONGER = {126: struct.Struct(">H"), 127: struct.Struct(">Q")}
_MASK_LENGTH = 4

# Status codes of closing.
_NORMAL, _PROTOCOL_ERROR, _INVALID_DATA, _POLICY = 1000, 1002, 1003, 1008


class _BadRequestError(Exception):
    """The request is refused, with this status line and these headers."""

    def __init__(self, reason: str, status: str = "400 Bad Request") -> None:
        super().__init__(reason)
        self.status = status


class WebSocket(Codec):
    """A conversation with one client."""

    def __init__(self) -> None:
        self._incoming = bytearray()
        self._outgoing = bytearray()
        #: What is left of a frame's payload, its opcode, and its mask, turned to the next byte.
        self._remaining = 0
        self._opcode = 0
        self._mask = b""
        #: A message of several frames goes on.
        self._fragmented = False
        #: Whether a frame's header has been read and not all of its payload.
        self._in_frame = False
        self._closed = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the client; return what it has sent."""
        self._incoming += data
        if not self.established:
            self._shake_hands()
            return b""
        received = bytearray()
        try:
            while not self.ended and self._take_frame(received):
                pass
        except WebSocketError:
            if not received:  # what came before counts
                raise
        return bytes(received)

    def encode(self, data: bytes) -> bytes:
        """Put data into a binary message."""
        if data and not self._closed:
            self._frame(_BINARY, data)
        outgoing = bytes(self._outgoing)
        self._outgoing.clear()
        return outgoing

    def finish(self) -> bytes:
        """Say good-bye."""
        if self.established and not self._closed:
            self._close(_NORMAL, b"")
        return self.encode(b"")

    def close(self) -> None:
        """Forget what has come."""
        self._incoming.clear()

    # The handshake.

    def _shake_hands(self) -> None:
        end = self._incoming.find(b"\r\n\r\n", 0, _MAX_REQUEST)
        try:
            if end < 0:
                if len(self._incoming) < _MAX_REQUEST:
                    return
                raise _BadRequestError(
                    "End of headers not found in first 4096 bytes", "403 Request Entity Too Large"
                )
            request = bytes(self._incoming[:end])
            del self._incoming[: end + 4]
            key, protocol = _understand(request)
        except _BadRequestError as error:
            self._answer(error.status, "Connection: close")
            raise WebSocketError(f"WebSocket handshake failed: {error}") from None
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
        lines = ["Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}"]
        if protocol:
            lines.append("Sec-WebSocket-Protocol: binary")
        self._answer("101 Switching Protocols", *lines)
        self.established = True

    def _answer(self, status: str, *headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", "Server: vhostblk", f"Date: {formatdate(usegmt=True)}"]
        if status.startswith("400"):
            headers = (*headers, "Sec-WebSocket-Version: 13")
        self._outgoing += "\r\n".join([*lines, *headers, "", ""]).encode("ascii")

    # Frames.

    def _take_frame(self, received: bytearray) -> bool:
        """Take a frame, or a part of one, out of what has come; False: there is not enough."""
        if not self._in_frame and not self._take_header():
            return False
        available = len(self._incoming)
        if self._opcode & _CONTROL and available < self._remaining:
            return False  # it is answered as a whole
        if self._remaining and not available:
            return False
        count = min(self._remaining, available)
        payload = _unmasked(self._incoming[:count], self._mask)
        del self._incoming[:count]
        self._remaining -= count
        turn = count % _MASK_LENGTH
        self._mask = self._mask[turn:] + self._mask[:turn]
        self._in_frame = self._remaining > 0
        if self._opcode == _BINARY:
            received += payload
        elif self._opcode == _PING:
            self._frame(_PONG, payload)
        elif self._opcode == _CLOSE:
            self.ended = True
            if payload:
                self._frame(_CLOSE, payload)
                self._closed = True
            else:
                self._close(_NORMAL, b"peer requested close")
        return True

    def _take_header(self) -> bool:
        incoming = self._incoming
        if len(incoming) < 2:
            return False
        first, second = incoming[0], incoming[1]
        opcode, length = first & 0x0F, second & 0x7F
        if opcode == _CONTINUATION and self._fragmented:
            opcode = _BINARY
        self._check(opcode, bool(first & _FIN), bool(second & _MASKED), length)
        longer = _LONGER.get(length)
        start = 2 + (longer.size if longer is not None else 0)
        if len(incoming) < start + _MASK_LENGTH:
            return False
        if longer is not None:
            (length,) = longer.unpack_from(incoming, 2)
        if not opcode & _CONTROL:
            self._fragmented = not first & _FIN
        self._opcode, self._remaining, self._in_frame = opcode, length, True
        self._mask = bytes(incoming[start : start + _MASK_LENGTH])
        del incoming[: start + _MASK_LENGTH]
        return True

    def _check(self, opcode: int, final: bool, masked: bool, length: int) -> None:
        """Refuse frames that are not allowed; raises WebSocketError."""
        if not final and opcode != _BINARY:
            self._fail(_POLICY, "only binary frames may be fragmented")
        if opcode not in (_BINARY, _CLOSE, _PING, _PONG):
            self._fail(_INVALID_DATA, "only binary, close, ping, and pong frames are supported")
        if not masked:
            self._fail(_PROTOCOL_ERROR, "client frames must be masked")
        if opcode & _CONTROL and length in _LONGER:
            self._fail(_PROTOCOL_ERROR, "control frame is too large")

    def _fail(self, code: int, reason: str) -> None:
        self._close(code, reason.encode())
        self.ended = True
        raise WebSocketError(f"WebSocket: {reason}")

    def _close(self, code: int, reason: bytes) -> None:
        self._frame(_CLOSE, struct.pack(">H", code) + reason)
        self._closed = True

    def _frame(self, opcode: int, payload: bytes) -> None:
        length = len(payload)
        if length < 126:
            self._outgoing += bytes((_FIN | opcode, length))
        else:
            kind = 126 if length < 1 << 16 else 127
            self._outgoing += bytes((_FIN | opcode, kind)) + _LONGER[kind].pack(length)
        self._outgoing += payload


def _unmasked(data: bytearray, mask: bytes) -> bytes:
    length = len(data)
    pad = (mask * (length // _MASK_LENGTH + 1))[:length]
    number = int.from_bytes(data, "little") ^ int.from_bytes(pad, "little")
    return number.to_bytes(length, "little")


def _understand(request: bytes) -> tuple[bytes, bool]:
    """Return a request's key, and whether it names subprotocols; raises _BadRequestError."""
    greeting, *lines = request.split(b"\r\n")
    method, space, rest = greeting.partition(b" ")
    if not space:
        raise _BadRequestError("Missing HTTP path delimiter")
    if method != b"GET":
        raise _BadRequestError(f"Unsupported HTTP method {_text(method)}")
    path, space, version = rest.partition(b" ")
    if not space:
        raise _BadRequestError("Missing HTTP version delimiter")
    if path != b"/":
        raise _BadRequestError(f"Unexpected HTTP path {_text(path)}", "404 Not Found")
    if version != b"HTTP/1.1":
        raise _BadRequestError(f"Unsupported HTTP version {_text(version)}")
    headers = _headers(lines)
    for name in ("version", "key", "host", "connection", "upgrade"):
        header = f"sec-websocket-{name}" if name in ("version", "key") else name
        if header.encode() not in headers:
            raise _BadRequestError(f"Missing websocket {name} header data")
    protocols = headers.get(b"sec-websocket-protocol")
    if protocols is not None and b"binary" not in protocols:
        raise _BadRequestError(f"No 'binary' protocol is supported by client '{_text(protocols)}'")
    version = headers[b"sec-websocket-version"]
    if version != _VERSION:
        raise _BadRequestError(f"Version '13' is not supported by client '{_text(version)}'")
    key = headers[b"sec-websocket-key"]
    if len(key) != _KEY_LENGTH:
        raise _BadRequestError(f"Key length '{len(key)}' was not as expected '{_KEY_LENGTH}'")
    connection = headers[b"connection"]
    if b"upgrade" not in (part.strip().lower() for part in connection.split(b",")):
        raise _BadRequestError(f"No connection upgrade requested '{_text(connection)}'")
    upgrade = headers[b"upgrade"]
    if upgrade.lower() != b"websocket":
        raise _BadRequestError(f"Incorrect upgrade method '{_text(upgrade)}'")
    return key, protocols is not None


def _headers(lines: list[bytes]) -> dict[bytes, bytes]:
    """Return headers by their names in lower case; of several with one name, the first."""
    headers: dict[bytes, bytes] = {}
    if not lines:
        raise _BadRequestError("Malformed HTTP header")
    for index, line in enumerate(lines):
        name, colon, value = line.partition(b":")
        if not colon:
            raise _BadRequestError("Malformed HTTP header")
        if index >= _MAX_HEADERS:
            raise _BadRequestError("Too many HTTP headers")
        headers.setdefault(name.lower(), value.lstrip(b" "))
    return headers


def _text(data: bytes) -> str:
    """Return what a client has sent as a log may show it."""
    return data[:100].decode("ascii", "backslashreplace").encode("unicode_escape").decode()

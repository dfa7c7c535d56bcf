# SPDX-License-Identifier: Apache-2.0
"""A client that asks an NBD server for as much as it can give (`doc/proto.md` of the NBD project).

It keeps a number of requests in flight and does almost nothing for one: requests are made
beforehand and sent many at a time; replies have one length, so that they need only be counted. The
headers of replies are checked, for each block of data that was received, with array operations.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

_OPTION_MAGIC = b"IHAVEOPT"
_EXPORT_NAME = 1
_NO_ZEROES = 2
_REQUEST = np.dtype(
    [
        ("magic", ">u4"),
        ("flags", ">u2"),
        ("type", ">u2"),
        ("handle", ">u8"),
        ("offset", ">u8"),
        ("length", ">u4"),
    ]
)
_REQUEST_MAGIC = 0x25609513
_REPLY = np.dtype([("magic", ">u4"), ("error", ">u4"), ("handle", ">u8")])
_REPLY_MAGIC = 0x67446698
_PREPARED = 1 << 13
#: Seconds until a missing answer is a failure.
_PATIENCE = 30.0


class NbdError(Exception):
    """The server doesn't do what it should."""


def connect(path: Path) -> socket.socket:
    """Connect and choose the default export."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(str(path))
    greeting = _receive(connection, 18)
    if greeting[:16] != b"NBDMAGIC" + _OPTION_MAGIC:
        raise NbdError("not an NBD server")
    connection.sendall(struct.pack(">I", 1 | _NO_ZEROES))
    connection.sendall(_OPTION_MAGIC + struct.pack(">II", _EXPORT_NAME, 0))
    _receive(connection, 10)
    return connection


def _receive(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise NbdError("the server hung up")
        data += part
    return bytes(data)


def run(
    path: Path, *, depth: int, seconds: float, write: bool, size: int = 1 << 30, block: int = 4096
) -> float:
    """Return requests a second at random offsets."""
    requests = np.zeros(_PREPARED, _REQUEST)
    requests["magic"] = _REQUEST_MAGIC
    requests["type"] = int(write)
    requests["offset"] = np.random.default_rng(1).integers(0, size // block, _PREPARED) * block
    requests["length"] = block
    packed = requests.view(np.uint8).reshape(_PREPARED, _REQUEST.itemsize)
    if write:
        packed = np.concatenate([packed, np.full((_PREPARED, block), 7, np.uint8)], axis=1)
    messages = memoryview(packed.tobytes())
    with connect(path) as connection:
        return _pump(connection, messages, depth, seconds, 16 if write else 16 + block)


def _pump(
    connection: socket.socket, messages: memoryview, depth: int, seconds: float, reply: int
) -> float:
    """Send and receive whatever is possible, until all requests have been answered."""
    request = len(messages) // _PREPARED
    buffer = bytearray(reply * depth)
    view = memoryview(buffer)
    waiting: memoryview = messages[: depth * request]  # the part of a run that is to be sent
    position, todo = depth, 0
    filled = answered = 0
    in_flight = depth
    begin = time.perf_counter()
    connection.setblocking(False)
    while in_flight:
        if todo and not waiting:
            count = min(todo, _PREPARED - position)
            waiting = messages[position * request : (position + count) * request]
            position, todo = (position + count) % _PREPARED, todo - count
        if waiting:
            with contextlib.suppress(BlockingIOError):
                waiting = waiting[connection.send(waiting) :]
        try:
            got = connection.recv_into(view[filled:])
        except BlockingIOError:
            _wait(connection, writing=bool(waiting))
            continue
        if not got:
            raise NbdError("the server hung up")
        filled += got
        whole = filled // reply
        if not whole:
            continue
        _check(buffer, whole, reply)
        buffer[: filled - whole * reply] = buffer[whole * reply : filled]
        filled -= whole * reply
        answered, in_flight = answered + whole, in_flight - whole
        if time.perf_counter() - begin < seconds:
            todo, in_flight = todo + whole, in_flight + whole
    return answered / (time.perf_counter() - begin)


def _wait(connection: socket.socket, *, writing: bool) -> None:
    if not any(select.select([connection], [connection] if writing else [], [], _PATIENCE)):
        raise NbdError("the server doesn't answer")


def _check(buffer: bytearray, count: int, reply: int) -> None:
    heads = np.frombuffer(buffer, np.uint8, count * reply).reshape(count, reply)[:, :16]
    found = np.ascontiguousarray(heads).view(_REPLY)
    if (found["magic"] != _REPLY_MAGIC).any() or found["error"].any():
        raise NbdError("a request failed")

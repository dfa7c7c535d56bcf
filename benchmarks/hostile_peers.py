# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.hostile_peers NAME SOCKET`: a front-end that misbehaves until it is killed.

It says `ready` when it has done so for the first time. See `benchmarks.hostile`.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from benchmarks.loadgen.client import FrontEnd, Geometry
from benchmarks.loadgen.protocol import (
    HEADER,
    U64,
    VERSION,
    VRING_STATE,
    Connection,
    ProtocolError,
    ProtocolFeature,
    Request,
)
from benchmarks.loadgen.run import Workload, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Where no guest has memory.
HOLE = 1 << 50
MIB = 1 << 20
_WRITE = 2  # VIRTQ_DESC_F_WRITE
_REGION = struct.Struct("<QQQQQ")


def nobody(_path: str) -> Iterator[None]:
    """Nothing at all."""
    while True:
        yield
        time.sleep(1)


def spinning(_path: str) -> Iterator[None]:
    """Use a processor, and leave the daemon alone."""
    while True:
        yield


def honest(path: str) -> Iterator[None]:
    """Ask for as much as can be had at depth 32."""
    with FrontEnd(path, Geometry(depth=32)) as front:
        while True:
            run(front, Workload(seconds=0.1))
            yield


def connections(path: str) -> Iterator[None]:
    """Connect, say half a word, leave."""
    while True:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.send(HEADER.pack(Request.SET_OWNER, VERSION, 0)[:5])
        yield


def stalling(path: str) -> Iterator[None]:
    """Say half a word, and no more."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.send(HEADER.pack(Request.SET_OWNER, VERSION, 0)[:5])
        while True:
            yield
            time.sleep(1)


def messages(path: str) -> Iterator[None]:
    """Send messages as fast as they are taken."""
    words = HEADER.pack(Request.SET_OWNER, VERSION, 0) * 1000
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        while True:
            sock.sendall(words)
            yield


def refused(path: str) -> Iterator[None]:
    """Send messages that are refused, each a line for the log."""
    connection = Connection(path)
    connection.call_u64(Request.GET_FEATURES)
    connection.send(Request.SET_PROTOCOL_FEATURES, U64.pack(1 << ProtocolFeature.REPLY_ACK))
    connection.reply_ack = True
    while True:
        with suppress(ProtocolError):
            connection.send(Request.SET_VRING_NUM, VRING_STATE.pack(0, 3))
        yield


def memory(path: str) -> Iterator[None]:
    """Plug memory in and out while a queue runs."""
    fd = os.memfd_create("plugged")
    os.truncate(fd, MIB)
    region = _REGION.pack(0, HOLE, MIB, HOLE, 0)
    with FrontEnd(path, Geometry(depth=32)) as front:
        while True:
            front.connection.send(Request.ADD_MEM_REG, region, [fd])
            front.connection.send(Request.REM_MEM_REG, region)
            yield


def kicks(path: str) -> Iterator[None]:
    """Kick a queue that has nothing to do."""
    with FrontEnd(path, Geometry(depth=32)) as front:
        kick = front.queues[0].kick_fd
        while True:
            os.eventfd_write(kick, 1)
            yield


def junk(path: str) -> Iterator[None]:
    """Fill the ring with chains that can't be, as fast as they are answered."""
    with FrontEnd(path, Geometry(depth=32)) as front:
        queue, size = front.queues[0], front.geometry.ring_size
        _part(front, queue.desc, 16 * size)[:] = (
            struct.pack("<QIHH", HOLE, 1 << 31, _WRITE, 0) * size
        )
        avail = _part(front, queue.avail, 4 + 2 * size)
        avail[4:] = struct.pack(f"<{size}H", *range(size))
        used = _part(front, queue.used, 4)
        index = 0
        while True:
            index = (index + size) & 0xFFFF
            avail[2:4] = index.to_bytes(2, "little")
            os.eventfd_write(queue.kick_fd, 1)
            while int.from_bytes(used[2:4], "little") != index:
                os.sched_yield()
            yield


def breaking(path: str) -> Iterator[None]:
    """Break a ring, and begin anew."""
    while True:
        with FrontEnd(path, Geometry(depth=32)) as front:
            queue = front.queues[0]
            _part(front, queue.avail, 6)[2:6] = struct.pack("<HH", 1, 0xFFFF)
            os.eventfd_write(queue.kick_fd, 1)
            front.stop()
        yield


def truncating(path: str) -> Iterator[None]:
    """Take memory away that a queue runs in, and begin anew (SIGBUS)."""
    while True:
        with FrontEnd(path, Geometry(depth=32)) as front:
            os.truncate(front.memory_fd, 0)
            os.eventfd_write(front.queues[0].kick_fd, 1)
            with suppress(ProtocolError):
                while True:
                    front.connection.call_u64(Request.GET_FEATURES)
        yield


#: In the order of the table.
PEERS: dict[str, Callable[[str], Iterator[None]]] = {
    peer.__name__: peer
    for peer in (
        *(nobody, spinning, honest, connections, stalling, messages, refused),
        *(memory, kicks, junk, breaking, truncating),
    )
}


def _part(front: FrontEnd, offset: int, size: int) -> Any:
    """Return guest memory, writable."""
    return front.loadgen.ffi.buffer(front.queues[0].memory + offset, size)


def main() -> None:
    """Misbehave."""
    os.nice(19)
    name, path = sys.argv[1:]
    for number, _ in enumerate(PEERS[name](path)):
        if number == 0:
            print("ready", flush=True)


if __name__ == "__main__":
    main()

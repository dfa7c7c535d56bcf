# SPDX-License-Identifier: Apache-2.0
"""A virtio-blk device as its driver sees it: guest memory, rings, and the handshake.

Guest memory is one memfd that holds, a queue after the other: descriptor table, avail ring, used
ring, control blocks, indirect tables, data buffers. Guest physical addresses differ from the
addresses in this process, so that a back-end which mixes them up fails.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from benchmarks.loadgen.build import Loadgen, load
from benchmarks.loadgen.protocol import (
    CONFIG_HEADER,
    F_PROTOCOL_FEATURES,
    INFLIGHT,
    U64,
    VRING_ADDR,
    VRING_STATE,
    Connection,
    ProtocolError,
    ProtocolFeature,
    Request,
)

if TYPE_CHECKING:
    from types import TracebackType

GUEST_BASE = 0x4000_0000
PAGE = 4096
SECTOR = 512
CONTROL_SIZE = 64
DESC_SIZE = 16
USED_ELEM_SIZE = 8

F_RO = 5
F_FLUSH = 9
F_MQ = 12
F_WRITE_ZEROES = 14
F_INDIRECT_DESC = 28
F_EVENT_IDX = 29
F_VERSION_1 = 32
F_RING_PACKED = 34

#: Where a packed ring begins: index 0, wrap counter 1, for taking and for using.
PACKED_START = 0x8000_8000


@dataclass(frozen=True)
class Geometry:
    """How a front-end sets its queues up. `segments` descriptors share a block's data."""

    queues: int = 1
    depth: int = 1
    block_size: int = 4096
    segments: int = 1
    event_idx: bool = True
    indirect: bool = False
    packed: bool = False
    #: Write a split ring's descriptors for each request, as drivers do; a packed ring's always are.
    rewrite: bool = False
    #: Have the back-end note requests in flight, for `FrontEnd.reconnect`.
    inflight: bool = False
    queue_size: int = 0
    #: 0: the smallest power of two that holds `depth` requests, at least 128

    def __post_init__(self) -> None:
        if self.block_size % (SECTOR * self.segments):
            raise ValueError("block size is not a multiple of 512 bytes a segment")
        if not 1 <= self.depth * self.chain_length <= self.ring_size <= 32768:
            raise ValueError(f"depth {self.depth} does not fit the queue")

    @property
    def chain_length(self) -> int:
        """Descriptors of the ring that one request takes."""
        return 1 if self.indirect else self.segments + 2

    @property
    def ring_size(self) -> int:
        """Size of each queue."""
        if self.queue_size:
            return self.queue_size
        return max(128, 1 << (self.depth * self.chain_length - 1).bit_length())


@dataclass(frozen=True)
class Layout:
    """Where the parts of one queue are in guest memory."""

    desc: int
    avail: int
    used: int
    control: int
    tables: int
    data: int
    data_stride: int
    end: int


def _align(value: int, alignment: int) -> int:
    return (value + alignment - 1) // alignment * alignment


def layout_queue(geometry: Geometry, start: int) -> Layout:
    """Lay one queue out from offset `start`; each part begins on a page."""
    size = geometry.ring_size
    avail = _align(start + DESC_SIZE * size, PAGE)
    used = _align(avail + 4 + 2 * size + 2, PAGE)
    control = _align(used + 4 + USED_ELEM_SIZE * size + 2, PAGE)
    tables = _align(control + CONTROL_SIZE * geometry.depth, PAGE)
    data = _align(tables + DESC_SIZE * (geometry.segments + 2) * geometry.depth, PAGE)
    stride = _align(geometry.block_size, PAGE)
    return Layout(start, avail, used, control, tables, data, stride, data + stride * geometry.depth)


@dataclass(frozen=True)
class DeviceInfo:
    """What the device said of itself."""

    features: int
    protocol_features: int
    max_queues: int
    capacity: int

    def has(self, bit: int) -> bool:
        """Tell whether the virtio feature is offered."""
        return bool(self.features >> bit & 1)


def _connect(path: str | os.PathLike[str], timeout: float) -> tuple[Connection, int]:
    """Connect and ask for the features.

    The QEMU daemon turns a client away until it has noticed that the last one is gone: try again,
    for `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        connection = Connection(path, timeout)
        try:
            return connection, connection.call_u64(Request.GET_FEATURES)
        except ProtocolError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        except BaseException:
            connection.close()
            raise


class FrontEnd:
    """A connected device with running queues; a context manager that disconnects."""

    def __init__(self, path: str | os.PathLike[str], geometry: Geometry, timeout: float = 5.0):
        self.geometry = geometry
        self.loadgen: Loadgen = load()
        self._cleanup = contextlib.ExitStack()
        self._queues: list[Any] = []
        with contextlib.ExitStack() as stack:
            self.connection, offered = _connect(path, timeout)
            stack.callback(lambda: self.connection.close())
            self.info = self._negotiate(offered)
            self._set_memory_up(stack)
            self._inflight: tuple[bytes, int] | None = None
            if geometry.inflight:
                self._inflight = self._make_inflight(stack)
            self._share()
            for index in range(geometry.queues):
                self._start_queue(index, stack)
            self._cleanup = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def queues(self) -> list[Any]:
        """The `struct lg_queue *` of each queue."""
        return self._queues

    @property
    def memory_fd(self) -> int:
        """Guest memory."""
        return self._memory_fd

    def close(self) -> None:
        """Hang up and release guest memory, whatever the state."""
        self._queues = []
        self._cleanup.close()

    def stop(self) -> list[int]:
        """Stop all queues (GET_VRING_BASE) and return their indices; the queues must be idle."""
        bases = []
        for index in range(self.geometry.queues):
            reply = self.connection.call(Request.GET_VRING_BASE, VRING_STATE.pack(index, 0))
            bases.append(int(VRING_STATE.unpack(reply)[1]))
        return bases

    def reconnect(self, path: str | os.PathLike[str], timeout: float = 5.0) -> None:
        """Go on with another process of the back-end: same memory, rings, requests in flight.

        Where the last one stopped nobody knows; like QEMU, this says what the used rings say, or,
        with packed rings, where the first one was started.
        """
        self.connection.close()
        self.connection, offered = _connect(path, timeout)
        self._negotiate(offered)
        self._share()
        for index, queue in enumerate(self._queues):
            self._attach(index, queue, self.loadgen.lib.lg_known_base(queue))

    def _make_inflight(self, stack: contextlib.ExitStack) -> tuple[bytes, int]:
        if not self.info.protocol_features >> ProtocolFeature.INFLIGHT_SHMFD & 1:
            raise ProtocolError("the device has no INFLIGHT_SHMFD")
        geometry = self.geometry
        wanted = INFLIGHT.pack(0, 0, geometry.queues, geometry.ring_size)
        described, fd = self.connection.call_for_fd(Request.GET_INFLIGHT_FD, wanted)
        stack.callback(os.close, fd)
        return described, fd

    def _share(self) -> None:
        """Hand guest memory, and the record of requests in flight, to the back-end."""
        self.connection.send(Request.SET_MEM_TABLE, self._region, [self._memory_fd])
        if self._inflight is not None:
            described, fd = self._inflight
            self.connection.send(Request.SET_INFLIGHT_FD, described, [fd])

    def _negotiate(self, offered: int) -> DeviceInfo:
        connection = self.connection
        connection.send(Request.SET_OWNER)
        protocol = 0
        queues = 1
        if offered >> F_PROTOCOL_FEATURES & 1:
            protocol = connection.call_u64(Request.GET_PROTOCOL_FEATURES)
            wanted = sum(1 << feature for feature in ProtocolFeature)
            connection.send(Request.SET_PROTOCOL_FEATURES, U64.pack(protocol & wanted))
            connection.reply_ack = bool(protocol >> ProtocolFeature.REPLY_ACK & 1)
            if protocol >> ProtocolFeature.MQ & 1:
                queues = connection.call_u64(Request.GET_QUEUE_NUM)
        if queues < self.geometry.queues:
            raise ProtocolError(f"the device has {queues} queues")
        capacity = 0
        if protocol >> ProtocolFeature.CONFIG & 1:
            capacity = struct.unpack("<Q", self._read_config(0, 8))[0] * SECTOR
        info = DeviceInfo(offered, protocol, queues, capacity)
        if not info.has(F_VERSION_1):
            raise ProtocolError("the device has no VERSION_1")
        self.event_idx = self.geometry.event_idx and info.has(F_EVENT_IDX)
        if self.geometry.indirect and not info.has(F_INDIRECT_DESC):
            raise ProtocolError("the device has no INDIRECT_DESC")
        if self.geometry.packed and not info.has(F_RING_PACKED):
            raise ProtocolError("the device has no RING_PACKED")
        bits = {F_VERSION_1, F_RO, F_FLUSH, F_WRITE_ZEROES, F_PROTOCOL_FEATURES}
        bits |= {F_MQ} if self.geometry.queues > 1 else set()
        bits |= {F_EVENT_IDX} if self.event_idx else set()
        bits |= {F_INDIRECT_DESC} if self.geometry.indirect else set()
        bits |= {F_RING_PACKED} if self.geometry.packed else set()
        self.features = offered & sum(1 << bit for bit in bits)
        connection.send(Request.SET_FEATURES, U64.pack(self.features))
        return info

    def _read_config(self, offset: int, size: int) -> bytes:
        request = CONFIG_HEADER.pack(offset, size, 0) + bytes(size)
        reply = self.connection.call(Request.GET_CONFIG, request)
        if len(reply) != len(request):
            raise ProtocolError(f"GET_CONFIG: reply of {len(reply)} bytes")
        return reply[CONFIG_HEADER.size :]

    def _set_memory_up(self, stack: contextlib.ExitStack) -> None:
        self._layouts: list[Layout] = []
        end = 0
        for _ in range(self.geometry.queues):
            self._layouts.append(layout_queue(self.geometry, end))
            end = _align(self._layouts[-1].end, PAGE)
        fd = os.memfd_create("guest-memory", os.MFD_CLOEXEC)
        stack.callback(os.close, fd)
        os.ftruncate(fd, end)
        memory = mmap.mmap(fd, end, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        view = self.loadgen.ffi.from_buffer("uint8_t[]", memory, require_writable=True)
        stack.callback(memory.close)
        stack.callback(self.loadgen.ffi.release, view)
        for layout in self._layouts:
            length = layout.end - layout.data
            memory[layout.data : layout.end] = os.urandom(min(length, 1 << 20)).ljust(
                length, b"\x5a"
            )
        self._memory = view
        self._address = int(self.loadgen.ffi.cast("uintptr_t", view))
        self._region = struct.pack("<IIQQQQ", 1, 0, GUEST_BASE, end, self._address, 0)
        self._memory_fd = fd

    def _start_queue(self, index: int, stack: contextlib.ExitStack) -> None:
        layout = self._layouts[index]
        kick = os.eventfd(0, os.EFD_CLOEXEC)
        stack.callback(os.close, kick)
        call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        stack.callback(os.close, call)
        queue = self._make_queue(layout, kick, call)
        if self.loadgen.lib.lg_queue_init(queue):
            raise MemoryError("no memory for the slots of a queue")
        stack.callback(self.loadgen.lib.lg_queue_free, queue)
        self._attach(index, queue, PACKED_START if self.geometry.packed else 0)
        self._queues.append(queue)

    def _attach(self, index: int, queue: Any, base: int) -> None:
        layout = self._layouts[index]
        send = self.connection.send
        send(Request.SET_VRING_NUM, VRING_STATE.pack(index, self.geometry.ring_size))
        send(Request.SET_VRING_BASE, VRING_STATE.pack(index, base))
        rings = (layout.desc, layout.used, layout.avail)
        addresses = [self._address + offset for offset in rings]
        send(Request.SET_VRING_ADDR, VRING_ADDR.pack(index, 0, *addresses, 0))
        send(Request.SET_VRING_CALL, U64.pack(index), [queue.call_fd])
        send(Request.SET_VRING_KICK, U64.pack(index), [queue.kick_fd])
        if self.info.has(F_PROTOCOL_FEATURES):
            send(Request.SET_VRING_ENABLE, VRING_STATE.pack(index, 1))

    def _make_queue(self, layout: Layout, kick: int, call: int) -> Any:
        geometry = self.geometry
        queue = self.loadgen.ffi.new("struct lg_queue *")
        queue.memory = self._memory
        queue.guest_base = GUEST_BASE
        for name in ("desc", "avail", "used", "control", "tables", "data", "data_stride"):
            setattr(queue, name, getattr(layout, name))
        queue.block_size = geometry.block_size
        queue.segments = geometry.segments
        queue.size = geometry.ring_size
        queue.depth = geometry.depth
        queue.kick_fd = kick
        queue.call_fd = call
        queue.event_idx = self.event_idx
        queue.indirect = geometry.indirect
        queue.packed = geometry.packed
        queue.rewrite = geometry.rewrite and not geometry.packed
        return queue

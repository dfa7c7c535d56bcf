# SPDX-License-Identifier: Apache-2.0
"""A virtio-blk driver (VIRTIO 1.3, 5.2) over vhost-user.

`BlkDriver` connects a device. `submit` and `wait` run requests at any depth. The methods named
after requests run one request and return its result. `BlkDriver.rings[n].add` builds invalid
chains.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tests.frontend.layout.virtio_blk import (
    CONFIG,
    DISCARD_SEGMENT,
    ID_BYTES,
    REQUEST_HEADER,
    SECTOR_SIZE,
    WRITE_ZEROES_FLAG_UNMAP,
    Feature,
    RequestType,
    Status,
)
from tests.frontend.packed import PackedDriverRing
from tests.frontend.ring import CompletionTimeoutError, DriverRing, Segment, Used

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from tests.frontend.connection import Connection
    from tests.frontend.layout.vhost_user import InflightArea
    from tests.frontend.memory import Memory

#: The features that Linux's driver and this one acknowledge.
FEATURES = sum(
    1 << bit
    for bit in (
        Feature.SIZE_MAX,
        Feature.SEG_MAX,
        Feature.GEOMETRY,
        Feature.RO,
        Feature.BLK_SIZE,
        Feature.FLUSH,
        Feature.TOPOLOGY,
        Feature.CONFIG_WCE,
        Feature.MQ,
        Feature.DISCARD,
        Feature.WRITE_ZEROES,
        Feature.RING_INDIRECT_DESC,
        Feature.RING_EVENT_IDX,
        Feature.VERSION_1,
    )
)

#: The same with packed rings, which Linux's driver also acknowledges.
PACKED_FEATURES = FEATURES | Feature.RING_PACKED.mask

#: The status byte before the device writes it.
_STATUS_UNSET = 0xFF


class RequestError(Exception):
    """A request failed; `status` is the device's status byte."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(f"{what}: status {status}")
        self.status = status


@dataclass(slots=True)
class BlkRequest:
    """A request that was submitted."""

    queue: int
    type: int
    head: int
    status_addr: int
    #: Address and length of the buffer for the device's data.
    data_in: list[tuple[int, int]] = field(default_factory=list)
    #: The used ring's length, once completed.
    used_length: int | None = None
    status: int = _STATUS_UNSET


class _Buffers:
    """Guest memory recycled by size, so that long tests don't run out of it."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._free: dict[int, list[int]] = {}

    def take(self, size: int) -> int:
        rounded = 1 << max(size - 1, 15).bit_length()
        free = self._free.setdefault(rounded, [])
        return free.pop() if free else self._memory.allocate(rounded, min(rounded, 4096))

    def give(self, address: int, size: int) -> None:
        self._free[1 << max(size - 1, 15).bit_length()].append(address)


class BlkDriver:
    """A negotiated device with its queues running."""

    def __init__(
        self,
        connection: Connection,
        memory: Memory,
        *,
        num_queues: int = 1,
        queue_size: int = 128,
        features: int = FEATURES,
        indirect: bool = False,
        start: int = 0,
        inflight: bool = False,
        timeout: float = 30.0,
    ) -> None:
        """Negotiate, share `memory`, start the queues.

        With `indirect`, every chain uses an indirect table. `start` is the first ring index, for
        tests of the wrap-around. With `inflight`, the back-end records requests in flight, so that
        `reconnect` can continue with another process.
        """
        self.connection = connection
        self.memory = memory
        self.timeout = timeout
        self.features = connection.negotiate(features)
        connection.set_mem_table(memory.describe())
        event_idx = self.has(Feature.RING_EVENT_IDX)
        self.indirect = indirect
        kind = PackedDriverRing if self.has(Feature.RING_PACKED) else DriverRing
        self.rings = [
            kind(memory, queue_size, event_idx=event_idx, start=start) for _ in range(num_queues)
        ]
        self.inflight: InflightArea | None = None
        if inflight:
            self.inflight = connection.get_inflight_fd(num_queues, queue_size)
            connection.set_inflight_fd(self.inflight)
        for index, ring in enumerate(self.rings):
            ring.attach(connection, index)
        self._buffers = _Buffers(memory)
        self._pending: list[dict[int, tuple[BlkRequest, list[tuple[int, int]]]]] = [
            {} for _ in self.rings
        ]

    def __enter__(self) -> BlkDriver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def reconnect(self, connection: Connection, *, enable: bool = True) -> None:
        """Continue with another back-end process, as QEMU does, which only knows the rings."""
        self.connection.close()
        self.connection = connection
        connection.negotiate(self.features)
        connection.set_mem_table(self.memory.describe())
        if self.inflight is not None:
            connection.set_inflight_fd(self.inflight)
        for index, ring in enumerate(self.rings):
            ring.attach(connection, index, enable=enable, base=ring.known_base)

    def close(self) -> None:
        """Disconnect at once, as a killed VMM does."""
        self.connection.close()
        if self.inflight is not None:
            os.close(self.inflight.fd)
            self.inflight = None
        for ring in self.rings:
            ring.close()

    def stop(self) -> list[int]:
        """Stop the queues as an orderly VMM does; returns their bases."""
        return [self.connection.get_vring_base(index) for index in range(len(self.rings))]

    def has(self, feature: Feature) -> bool:
        """Return whether a feature was negotiated."""
        return bool(self.features >> feature & 1)

    def config(self) -> np.void:
        """Read configuration space as a `CONFIG` record."""
        raw = self.connection.get_config(0, CONFIG.itemsize)
        record: np.void = np.frombuffer(raw, CONFIG)[0]
        return record

    @property
    def capacity(self) -> int:
        """The disk's size in bytes."""
        return int(self.config()["capacity"]) * SECTOR_SIZE

    # Any depth

    def submit(
        self,
        request_type: int,
        offset: int = 0,
        *,
        data_out: Sequence[bytes] = (),
        data_in: Sequence[int] = (),
        queue: int = 0,
    ) -> BlkRequest:
        """Queue one request: a segment for each piece of `data_out`, each length of `data_in`.

        The device does not see it before `kick`.
        """
        taken: list[tuple[int, int]] = []
        segments = [self._put(_header(request_type, offset), taken)]
        segments += [self._put(piece, taken) for piece in data_out]
        reads = [Segment(self._take(length, taken), length, True) for length in data_in]
        status_addr = self._take(1, taken)
        self.memory.write(status_addr, bytes([_STATUS_UNSET]))
        segments += [*reads, Segment(status_addr, 1, True)]
        head = self.rings[queue].add(segments, indirect=self.indirect)
        request = BlkRequest(
            queue, request_type, head, status_addr, [(read.addr, read.length) for read in reads]
        )
        self._pending[queue][head] = (request, taken)
        return request

    def _take(self, length: int, taken: list[tuple[int, int]]) -> int:
        address = self._buffers.take(length)
        taken.append((address, length))
        return address

    def _put(self, data: bytes, taken: list[tuple[int, int]]) -> Segment:
        address = self._take(len(data), taken)
        self.memory.write(address, data)
        return Segment(address, len(data))

    def kick(self, queue: int = 0) -> None:
        """Make the submitted requests available to the device."""
        self.rings[queue].kick()

    def poll(self, queue: int = 0) -> list[tuple[BlkRequest, bytes]]:
        """Return completed requests with the data that they have read."""
        return self._complete(queue, self.rings[queue].poll())

    def wait_some(self, queue: int = 0) -> list[tuple[BlkRequest, bytes]]:
        """Return completed requests; sleep until there are any."""
        return self._complete(queue, self.rings[queue].wait(self.timeout))

    def drain(self, queue: int = 0) -> list[tuple[BlkRequest, bytes]]:
        """Kick, and wait for all submitted requests."""
        self.kick(queue)
        done: list[tuple[BlkRequest, bytes]] = []
        while self._pending[queue]:
            done += self.wait_some(queue)
        return done

    def _complete(self, queue: int, used: Iterable[Used]) -> list[tuple[BlkRequest, bytes]]:
        done = []
        for head, length in used:
            request, taken = self._pending[queue].pop(head)
            request.used_length = length
            request.status = self.memory.read(request.status_addr, 1)[0]
            data = b"".join(self.memory.read(*part) for part in request.data_in)
            for address, size in taken:
                self._buffers.give(address, size)
            done.append((request, data))
        return done

    # One at a time

    def run(
        self,
        request_type: int,
        offset: int = 0,
        *,
        data_out: Sequence[bytes] = (),
        data_in: Sequence[int] = (),
        queue: int = 0,
    ) -> bytes:
        """Run one request alone in its queue; return its data, or raise RequestError."""
        if self._pending[queue]:
            raise RuntimeError("requests are pending; drain() the queue first")
        self.submit(request_type, offset, data_out=data_out, data_in=data_in, queue=queue)
        ((request, data),) = self.drain(queue)
        if request.status != Status.OK:
            raise RequestError(f"request type {request_type}", request.status)
        return data

    def read(self, offset: int, length: int, *, queue: int = 0) -> bytes:
        """Read bytes; both numbers are multiples of 512."""
        return self.run(RequestType.IN, offset, data_in=[length], queue=queue)

    def write(self, offset: int, data: bytes, *, queue: int = 0) -> None:
        """Write bytes; offset and length are multiples of 512."""
        self.run(RequestType.OUT, offset, data_out=[data], queue=queue)

    def flush(self, *, queue: int = 0) -> None:
        """Make written data durable."""
        self.run(RequestType.FLUSH, queue=queue)

    def get_id(self, *, queue: int = 0) -> bytes:
        """Return the serial number, without its padding."""
        return self.run(RequestType.GET_ID, data_in=[ID_BYTES], queue=queue).rstrip(b"\0")

    def discard(self, *ranges: tuple[int, int], queue: int = 0) -> None:
        """Discard ranges of (offset, length), in one request."""
        self.run(RequestType.DISCARD, data_out=[range_segments(ranges)], queue=queue)

    def write_zeroes(self, *ranges: tuple[int, int], unmap: bool = False, queue: int = 0) -> None:
        """Zero ranges of (offset, length), in one request."""
        flags = WRITE_ZEROES_FLAG_UNMAP if unmap else 0
        self.run(RequestType.WRITE_ZEROES, data_out=[range_segments(ranges, flags)], queue=queue)

    def run_at_depth(
        self,
        depth: int,
        count: int,
        make: Callable[[int], tuple[int, int, bytes | int]],
        *,
        queue: int = 0,
    ) -> list[tuple[BlkRequest, bytes]]:
        """Run `count` requests, at most `depth` in flight, if the ring has room for them.

        `make(number)` gives type, offset, and the bytes to write or the length to read. The result
        is in order of completion.
        """
        done: list[tuple[BlkRequest, bytes]] = []
        number = 0
        while len(done) < count:
            ring = self.rings[queue]
            needed = 1 if self.indirect else 3
            while number < count and ring.in_flight < depth and ring.free >= needed:
                request_type, offset, data = make(number)
                if isinstance(data, bytes):
                    self.submit(request_type, offset, data_out=[data], queue=queue)
                else:
                    self.submit(request_type, offset, data_in=[data], queue=queue)
                number += 1
            self.kick(queue)
            done += self.wait_some(queue)
        return done


def range_segments(ranges: Iterable[tuple[int, int]], flags: int = 0) -> bytes:
    """Encode ranges of (offset, length) in bytes for discard and write-zeroes."""
    return np.array(
        [(offset // SECTOR_SIZE, length // SECTOR_SIZE, flags) for offset, length in ranges],
        DISCARD_SEGMENT,
    ).tobytes()


def _header(request_type: int, offset: int) -> bytes:
    return np.array((request_type, 0, offset // SECTOR_SIZE), REQUEST_HEADER).tobytes()


__all__ = [
    "FEATURES",
    "PACKED_FEATURES",
    "BlkDriver",
    "BlkRequest",
    "CompletionTimeoutError",
    "RequestError",
    "range_segments",
]

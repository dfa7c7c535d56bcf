# SPDX-License-Identifier: Apache-2.0
"""The front-end's end of a vhost-user socket.

Every message has a method; `send` and `send_raw` can send malformed messages. With REPLY_ACK, each
message without a reply of its own asks for a reply, which is checked. So an error is raised where
it was caused: `RequestFailedError`, or `ConnectionClosedError` if the back-end has disconnected.
"""

from __future__ import annotations

import array
import os
import socket
from typing import TYPE_CHECKING, Self

from tests.frontend.layout.vhost_user import (
    CONFIG_HEADER,
    F_PROTOCOL_FEATURES,
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    INFLIGHT_BYTES,
    MEMORY_HEADER,
    SINGLE_REGION,
    U64,
    VERSION,
    VRING_ADDR,
    VRING_NOFD,
    VRING_STATE,
    InflightArea,
    ProtocolFeature,
    Request,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from tests.frontend.layout.vhost_user import MemoryRegion

#: The protocol features that this front-end uses.
PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)


class FrontendError(Exception):
    """The back-end did not do what was requested."""


class RequestFailedError(FrontendError):
    """The back-end's reply is a failure."""


class ConnectionClosedError(FrontendError):
    """The back-end closed the connection."""


class Connection:
    """A connected socket, with the negotiated features."""

    def __init__(self, sock: socket.socket, timeout: float = 30.0) -> None:
        """Take over a connected socket; no call waits longer than `timeout` seconds."""
        sock.settimeout(timeout)
        self.socket = sock
        self.protocol_features = ProtocolFeature(0)

    @classmethod
    def connect(cls, path: str | Path, timeout: float = 30.0) -> Self:
        """Connect to a back-end that listens at `path`; `timeout` is for all later calls."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Blocking: with a timeout, Python fails at once if the backlog is full.
            sock.connect(str(path))
        except BaseException:
            sock.close()
            raise
        return cls(sock, timeout)

    def __enter__(self) -> Connection:
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
        self.socket.close()

    # Transport

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes unchanged; descriptors are sent with the first byte."""
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if len(fds) else []
        )
        try:
            sent = self.socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            if sent < len(data):
                self.socket.sendall(data[sent:], socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ConnectionClosedError("closed while sending") from error

    def send(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = VERSION
    ) -> None:
        """Send one message."""
        self.send_raw(HEADER.pack(request, flags, len(payload)) + payload, fds)

    def receive_exactly(self, size: int) -> bytes:
        """Receive `size` bytes."""
        data = b""
        while len(data) < size:
            try:
                part = self.socket.recv(size - len(data))
            except ConnectionResetError:
                part = b""
            if not part:
                raise ConnectionClosedError(f"closed after {len(data)} of {size} bytes")
            data += part
        return data

    def receive_reply(self, request: int) -> bytes:
        """Receive the reply to `request`; returns its payload."""
        answered, flags, size = HEADER.unpack(self.receive_exactly(HEADER.size))
        payload = self.receive_exactly(size)
        if answered != request or flags != VERSION | FLAG_REPLY:
            raise FrontendError(f"reply to {answered}, flags {flags:#x}, where {request} was asked")
        return payload

    def query(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send a message that has a reply of its own; returns the reply's payload."""
        self.send(request, payload, fds)
        return self.receive_reply(request)

    def tell(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a message without a reply of its own; with REPLY_ACK, check that it succeeded."""
        if ProtocolFeature.REPLY_ACK not in self.protocol_features:
            self.send(request, payload, fds)
            return
        self.send(request, payload, fds, VERSION | FLAG_NEED_REPLY)
        (result,) = U64.unpack(self.receive_reply(request))
        if result:
            raise RequestFailedError(f"{Request(request).name}: {result}")

    def sync(self) -> None:
        """Return when the back-end has handled all earlier messages."""
        self.get_features()

    def wait_closed(self) -> None:
        """Return when the back-end has disconnected; fail if it sends something."""
        try:
            data = self.socket.recv(1)
        except ConnectionResetError:
            return
        if data:
            raise FrontendError("the back-end sent something where it should have disconnected")

    # Features

    def get_features(self) -> int:
        """GET_FEATURES."""
        return _u64(self.query(Request.GET_FEATURES))

    def set_features(self, features: int) -> None:
        """SET_FEATURES."""
        self.tell(Request.SET_FEATURES, U64.pack(features))

    def get_protocol_features(self) -> ProtocolFeature:
        """GET_PROTOCOL_FEATURES."""
        return ProtocolFeature(_u64(self.query(Request.GET_PROTOCOL_FEATURES)))

    def set_protocol_features(self, features: int) -> None:
        """SET_PROTOCOL_FEATURES."""
        self.send(Request.SET_PROTOCOL_FEATURES, U64.pack(features))
        self.protocol_features = ProtocolFeature(features)

    def negotiate(self, features: int, protocol: ProtocolFeature = PROTOCOL_FEATURES) -> int:
        """Own the device, and acknowledge the offered ones of `features` and `protocol`.

        Return the negotiated virtio features.
        """
        self.set_owner()
        offered = self.get_features()
        accepted = offered & features
        if offered & F_PROTOCOL_FEATURES:
            self.set_protocol_features(self.get_protocol_features() & protocol)
            accepted |= F_PROTOCOL_FEATURES
        self.set_features(accepted)
        return accepted & ~F_PROTOCOL_FEATURES

    def get_queue_num(self) -> int:
        """GET_QUEUE_NUM."""
        return _u64(self.query(Request.GET_QUEUE_NUM))

    def set_owner(self) -> None:
        """SET_OWNER."""
        self.tell(Request.SET_OWNER)

    def reset_owner(self) -> None:
        """RESET_OWNER."""
        self.tell(Request.RESET_OWNER)

    def reset_device(self) -> None:
        """RESET_DEVICE."""
        self.tell(Request.RESET_DEVICE)

    def set_status(self, status: int) -> None:
        """SET_STATUS."""
        self.tell(Request.SET_STATUS, U64.pack(status))

    def get_status(self) -> int:
        """GET_STATUS."""
        return _u64(self.query(Request.GET_STATUS))

    # Memory

    def set_mem_table(self, regions: Iterable[MemoryRegion]) -> None:
        """SET_MEM_TABLE."""
        regions = list(regions)
        payload = MEMORY_HEADER.pack(len(regions), 0) + b"".join(r.pack() for r in regions)
        self.tell(Request.SET_MEM_TABLE, payload, [region.fd for region in regions])

    def get_max_mem_slots(self) -> int:
        """GET_MAX_MEM_SLOTS."""
        return _u64(self.query(Request.GET_MAX_MEM_SLOTS))

    def add_mem_reg(self, region: MemoryRegion) -> None:
        """ADD_MEM_REG."""
        self.tell(Request.ADD_MEM_REG, region.pack_single(), [region.fd])

    def rem_mem_reg(self, region: MemoryRegion, *, with_fd: bool = False) -> None:
        """REM_MEM_REG; some front-ends send a descriptor with it."""
        fds = [region.fd] if with_fd else []
        self.tell(Request.REM_MEM_REG, region.pack_single(), fds)

    # Requests in flight

    def get_inflight_fd(self, num_queues: int, queue_size: int) -> InflightArea:
        """GET_INFLIGHT_FD; the caller owns the descriptor."""
        wanted = InflightArea(0, 0, num_queues, queue_size, fd=-1)
        self.send(Request.GET_INFLIGHT_FD, wanted.pack())
        fd = self._receive_fd(Request.GET_INFLIGHT_FD, INFLIGHT_BYTES)
        return InflightArea.unpack(self.receive_exactly(INFLIGHT_BYTES), fd)

    def _receive_fd(self, request: int, expected: int) -> int:
        """Receive the header of a reply of `expected` bytes, with a descriptor."""
        header, fds, _, _ = socket.recv_fds(self.socket, HEADER.size, 8)
        if not header:
            raise ConnectionClosedError("closed instead of a reply")
        answered, _, size = HEADER.unpack(header)
        if answered != request or len(fds) != 1 or size != expected:
            raise FrontendError(f"reply to {answered}, {size} bytes, {len(fds)} descriptors")
        return fds[0]

    def set_inflight_fd(self, area: InflightArea) -> None:
        """SET_INFLIGHT_FD."""
        self.tell(Request.SET_INFLIGHT_FD, area.pack(), [area.fd])

    # Post-copy migration

    def postcopy_advise(self) -> int:
        """POSTCOPY_ADVISE; the caller owns the userfaultfd."""
        self.send(Request.POSTCOPY_ADVISE)
        return self._receive_fd(Request.POSTCOPY_ADVISE, 0)

    def postcopy_listen(self) -> None:
        """POSTCOPY_LISTEN."""
        self.tell(Request.POSTCOPY_LISTEN)

    def add_arriving_regions(self, regions: Iterable[MemoryRegion]) -> list[int]:
        """ADD_MEM_REG after POSTCOPY_LISTEN; return the addresses of the back-end's mappings."""
        mapped = []
        for region in regions:
            reply = self.query(Request.ADD_MEM_REG, region.pack_single(), [region.fd])
            _, guest_addr, size, address, _ = SINGLE_REGION.unpack(reply)
            if (guest_addr, size) != (region.guest_addr, region.size):
                raise FrontendError(f"reply of the region at {guest_addr:#x}, {size:#x} bytes")
            mapped.append(address)
        self.send(Request.ADD_MEM_REG, U64.pack(0))
        return mapped

    def postcopy_end(self) -> None:
        """POSTCOPY_END."""
        if result := _u64(self.query(Request.POSTCOPY_END)):
            raise RequestFailedError(f"POSTCOPY_END: {result}")

    # Vrings

    def set_vring_num(self, index: int, size: int) -> None:
        """SET_VRING_NUM."""
        self.tell(Request.SET_VRING_NUM, VRING_STATE.pack(index, size))

    def set_vring_addr(
        self, index: int, desc: int, avail: int, used: int, flags: int = 0, log: int = 0
    ) -> None:
        """SET_VRING_ADDR; front-end user addresses."""
        self.tell(Request.SET_VRING_ADDR, VRING_ADDR.pack(index, flags, desc, used, avail, log))

    def set_vring_base(self, index: int, base: int) -> None:
        """SET_VRING_BASE."""
        self.tell(Request.SET_VRING_BASE, VRING_STATE.pack(index, base))

    def get_vring_base(self, index: int) -> int:
        """GET_VRING_BASE, which stops the vring."""
        reply = self.query(Request.GET_VRING_BASE, VRING_STATE.pack(index, 0))
        answered, base = VRING_STATE.unpack(reply)
        if answered != index:
            raise FrontendError(f"base of vring {answered} where {index} was asked for")
        return int(base)

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        """SET_VRING_KICK, which starts the vring."""
        self._set_vring_fd(Request.SET_VRING_KICK, index, fd)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        """SET_VRING_CALL."""
        self._set_vring_fd(Request.SET_VRING_CALL, index, fd)

    def set_vring_err(self, index: int, fd: int | None) -> None:
        """SET_VRING_ERR."""
        self._set_vring_fd(Request.SET_VRING_ERR, index, fd)

    def _set_vring_fd(self, request: Request, index: int, fd: int | None) -> None:
        if fd is None:
            self.tell(request, U64.pack(index | VRING_NOFD))
        else:
            self.tell(request, U64.pack(index), [fd])

    def set_vring_enable(self, index: int, enabled: bool) -> None:
        """SET_VRING_ENABLE."""
        self.tell(Request.SET_VRING_ENABLE, VRING_STATE.pack(index, enabled))

    # Configuration space and channel

    def get_config(self, offset: int, size: int) -> bytes:
        """GET_CONFIG; raises RequestFailedError if the reply is empty."""
        reply = self.query(Request.GET_CONFIG, CONFIG_HEADER.pack(offset, size, 0) + bytes(size))
        if not reply:
            raise RequestFailedError(f"GET_CONFIG {offset}+{size}")
        if CONFIG_HEADER.unpack_from(reply)[:2] != (offset, size):
            raise FrontendError("GET_CONFIG answered for other bytes")
        return reply[CONFIG_HEADER.size :]

    def set_config(self, offset: int, data: bytes, flags: int = 0) -> None:
        """SET_CONFIG."""
        self.tell(Request.SET_CONFIG, CONFIG_HEADER.pack(offset, len(data), flags) + data)

    def open_channel(self) -> socket.socket:
        """SET_BACKEND_REQ_FD; returns our end of the channel."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.settimeout(self.socket.gettimeout())
        try:
            with theirs:
                self.tell(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        return ours


def _u64(payload: bytes) -> int:
    (value,) = U64.unpack(payload)
    return int(value)


def receive_request(channel: socket.socket) -> tuple[int, bytes]:
    """Receive one request of the back-end from `open_channel`'s socket."""
    data = channel.recv(HEADER.size, socket.MSG_WAITALL)
    if len(data) < HEADER.size:
        raise ConnectionClosedError("the back-end closed its channel")
    request, _flags, size = HEADER.unpack(data)
    return request, channel.recv(size, socket.MSG_WAITALL) if size else b""


def send_fds_split(connection: Connection, data: bytes, fds: Sequence[int]) -> None:
    """Send a message one byte at a time; the descriptors go with the first byte."""
    connection.send_raw(data[:1], fds)
    for position in range(1, len(data)):
        connection.send_raw(data[position : position + 1])


def make_eventfd() -> int:
    """Create a non-blocking eventfd, as front-ends do."""
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

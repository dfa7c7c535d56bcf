# SPDX-License-Identifier: Apache-2.0
"""Messages of the vhost-user protocol (QEMU's `docs/interop/vhost-user.rst`).

The comments name the sections of that document. All numbers are in the machine's byte order.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

#: "Header": request, flags, size of the payload.
HEADER = Struct("=III")

#: "Header", flags: bits 0 and 1 are the version.
VERSION = 1
FLAG_REPLY = 1 << 2
FLAG_NEED_REPLY = 1 << 3


class Request(IntEnum):
    """Section "Front-end message types"."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43


class BackendRequest(IntEnum):
    """Section "Back-end message types": those of block devices."""

    CONFIG_CHANGE_MSG = 2
    VRING_CALL = 4
    VRING_ERR = 5


class ProtocolFeature(IntFlag):
    """Section "Protocol features", as masks."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19


#: "Communication", VHOST_USER_F_PROTOCOL_FEATURES: a bit among the features of the device.
F_PROTOCOL_FEATURES = 1 << 30

#: "Migration", VHOST_F_LOG_ALL, another one: the back-end logs its writes to guest memory.
F_LOG_ALL = 1 << 26

#: "A single 64-bit integer".
U64 = Struct("=Q")

#: "A vring state description": index, num.
VRING_STATE = Struct("=II")

#: "A vring address description": index, flags, descriptor, used, available, log.
VRING_ADDR = Struct("=IIQQQQ")

#: "Memory regions description": number of regions, padding. The regions follow.
MEMORY_HEADER = Struct("=II")

#: The most regions in one "Memory regions description".
MAX_TABLE_REGIONS = 8

#: The most slots that GET_MAX_MEM_SLOTS returns in libvhost-user (VHOST_USER_MAX_RAM_SLOTS).
MAX_MEM_SLOTS = 509

_REGION = Struct("=QQQQ")

#: "Single memory region description": padding, then guest address, size, user address and offset.
SINGLE_REGION = Struct("=QQQQQ")


class MemoryRegion(NamedTuple):
    """A region of guest memory, and the file that it is a part of."""

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int
    fd: int

    def pack(self) -> bytes:
        """Encode it as "Memory regions description" has it."""
        return _REGION.pack(self.guest_addr, self.size, self.user_addr, self.mmap_offset)

    def pack_single(self) -> bytes:
        """Encode it as a "Single memory region description"."""
        return bytes(SINGLE_REGION.size - _REGION.size) + self.pack()


#: "Log description": size, offset.
LOG = Struct("=QQ")

#: "Virtio device config space": offset, size, flags. The content follows.
CONFIG_HEADER = Struct("=III")

#: "Inflight description": mmap size, mmap offset, number of queues, queue size. The C structure
#: is padded to a multiple of 8 bytes.
_INFLIGHT = Struct("=QQHH4x")
INFLIGHT_BYTES = _INFLIGHT.size


class InflightArea(NamedTuple):
    """Memory in which the back-end keeps a record of requests in flight, and its file."""

    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int
    fd: int

    @classmethod
    def unpack(cls, payload: bytes, fd: int) -> InflightArea:
        """Decode the reply to GET_INFLIGHT_FD."""
        size, offset, num_queues, queue_size = _INFLIGHT.unpack(payload)
        return cls(size, offset, num_queues, queue_size, fd)

    def pack(self) -> bytes:
        """Encode it as an "Inflight description"."""
        return _INFLIGHT.pack(self.mmap_size, self.mmap_offset, self.num_queues, self.queue_size)


#: SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR: bits 0 to 7 are the index; this bit says that no
#: descriptor comes with the message.
VRING_NOFD = 1 << 8

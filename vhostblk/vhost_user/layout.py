# SPDX-License-Identifier: Apache-2.0
"""Layout facts of vhost-user messages (QEMU's `docs/interop/vhost-user.rst`).

Section names in the comments are that document's. Numbers are in the host's byte order.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

#: "Header": request, flags, size of the payload.
HEADER = Struct("=III")

#: "Header", flags.
VERSION_MASK = 0x3
VERSION = 0x1
FLAG_REPLY = 1 << 2
FLAG_NEED_REPLY = 1 << 3

#: File descriptors that one message may carry ("Memory regions description" has eight regions).
MAX_FDS = 8

#: Maximum length of a payload; a longer one is refused and not buffered.
MAX_PAYLOAD = 4096


class Request(IntEnum):
    """Section "Front-end message types"; NONE is no message: libvhost-user sends it at the end."""

    NONE = 0
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
    """Section "Back-end message types"."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8


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


#: "Inflight description": size and offset of the mapping, number of queues, queue size. C pads it
#: to a multiple of 8; some front-ends send it without the padding.
INFLIGHT = Struct("=QQHH")
INFLIGHT_PADDED_SIZE = 24

#: VHOST_USER_F_PROTOCOL_FEATURES ("Communication"): a feature bit of the transport's own.
F_PROTOCOL_FEATURES = 1 << 30

#: VHOST_F_LOG_ALL ("Migration"): log writes to guest memory in the dirty log.
F_LOG_ALL = 1 << 26

#: VIRTIO_F_VERSION_1 (VIRTIO 1.3, section 6): little-endian rings, the only ones supported here.
F_VERSION_1 = 1 << 32

#: VIRTIO_F_RING_PACKED: packed rings, with their own sizes and bases.
F_RING_PACKED = 1 << 34

#: "A single 64-bit integer".
U64 = Struct("=Q")

#: "A vring state description": index, num.
VRING_STATE = Struct("=II")

#: "A vring address description": index, flags, descriptor, used, available, log.
VRING_ADDR = Struct("=IIQQQQ")

#: Its flag VHOST_VRING_F_LOG: log writes to the used ring, at the log address.
VRING_F_LOG = 1 << 0

#: "Log description": size and offset of the mapping.
LOG = Struct("=QQ")


#: "Memory regions description": number of regions, padding; then the regions.
MEMORY_HEADER = Struct("=II")
MAX_TABLE_REGIONS = 8

#: A region: guest address, size, user address, mmap offset.
MEMORY_REGION = Struct("=QQQQ")

#: "Single memory region description": padding, then the region as above.
SINGLE_REGION = Struct("=QQQQQ")

#: "Virtio device config space": offset, size, flags; then the content.
CONFIG_HEADER = Struct("=III")

#: Longest configuration space that vhost-user carries (libvhost-user and QEMU agree on it).
MAX_CONFIG_SIZE = 256

#: SET_CONFIG, flags: 0 when the driver writes, 1 when a migration does.
CONFIG_WRITABLE = 0
CONFIG_MIGRATION = 1

#: SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR: index, and the flag "no descriptor is sent".
VRING_INDEX_MASK = 0xFF
VRING_NOFD = 1 << 8

#: VIRTIO 1.3, 2.7: the largest ring, and the alignment of its three parts.
MAX_RING_SIZE = 32768
DESC_ALIGN = 16
AVAIL_ALIGN = 2
USED_ALIGN = 4

#: SET_STATUS and GET_STATUS: a byte (VIRTIO 1.3, 2.1). FEATURES_OK stays clear if the accepted
#: features are not sufficient; the device sets NEEDS_RESET.
MAX_STATUS = 0xFF
STATUS_FEATURES_OK = 0x08
STATUS_NEEDS_RESET = 0x40

#: "Device state transfer parameters": direction and phase, with their values.
DEVICE_STATE = Struct("=II")
DEVICE_STATE_SAVE = 0
DEVICE_STATE_LOAD = 1
DEVICE_STATE_STOPPED = 0

#: SET_DEVICE_STATE_FD, reply: the flag "no descriptor is sent"; the front-end's one is used.
DEVICE_STATE_NOFD = 1 << 8

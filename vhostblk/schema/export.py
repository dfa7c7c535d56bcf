# SPDX-License-Identifier: Apache-2.0
"""Exports: `BlockExportOptions` and its branches (`qapi/block-export.json`)."""

from __future__ import annotations

from enum import Enum

from msgspec import field

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.common import Size, Uint16, Uint32  # noqa: TC001 (read at run time)
from vhostblk.schema.errors import OptionError
from vhostblk.schema.socket import FdSocketAddress, SocketAddress, UnixSocketAddress

#: QEMU's bounds of a block size (`hw/core/qdev-properties-system.c`).
MIN_BLOCK_SIZE = 512
MAX_BLOCK_SIZE = 2 << 20

#: VIRTIO 1.3, 2.7: the largest split virtqueue.
MAX_QUEUE_SIZE = 32768

#: VIRTIO 1.3, 5.2.6: the length of the identification string.
MAX_SERIAL_BYTES = 20

#: Export types that QEMU has and vhostblk does not.
UNAVAILABLE_TYPES = frozenset({"nbd", "fuse", "vduse-blk"})


class BlockExportOptionsBase(QapiStruct, tag_field="type", kw_only=True, frozen=True):
    """Members common to all export types."""

    id: str
    fixed_iothread: bool = False
    iothread: str | UnsetType = UNSET
    node_name: str
    writable: bool = False
    #: Flush after every write, whatever the guest asks for.
    writethrough: bool = False
    #: Leave an inactive node inactive.
    allow_inactive: bool = False


class BlockExportOptionsVhostUserBlk(
    BlockExportOptionsBase, tag="vhost-user-blk", kw_only=True, frozen=True
):
    """A vhost-user-blk device."""

    addr: SocketAddress
    logical_block_size: Size = 512
    num_queues: Uint16 = 1
    #: The disk's serial number, ASCII.
    serial: str | UnsetType = field(name="x-vhostblk-serial", default=UNSET)
    #: Queue size to plan for, a power of two: it decides how many segments a request may have.
    queue_size: Uint32 | UnsetType = field(name="x-vhostblk-queue-size", default=UNSET)
    #: Spread the queues over these iothreads, in turn.
    iothreads: list[str] | UnsetType = field(name="x-vhostblk-iothreads", default=UNSET)
    #: Permissions of the socket file, octal, and its group, by name or number.
    socket_mode: str | UnsetType = field(name="x-vhostblk-socket-mode", default=UNSET)
    socket_group: str | UnsetType = field(name="x-vhostblk-socket-group", default=UNSET)
    #: Let other processes write the image at the same time, as QEMU's daemon does.
    share_rw: bool = field(name="x-vhostblk-share-rw", default=False)


#: To become a union with the second type.
BlockExportOptions = BlockExportOptionsVhostUserBlk


def iothread_names(options: BlockExportOptionsVhostUserBlk) -> list[str]:
    """List the iothreads that an export names, in the order that its queues take them."""
    if options.iothreads is not UNSET:
        return options.iothreads
    return [] if options.iothread is UNSET else [options.iothread]


def check_vhost_user_blk(options: BlockExportOptionsVhostUserBlk) -> None:
    """Refuse values that have the right type and still make no device."""
    if not isinstance(options.addr, UnixSocketAddress | FdSocketAddress):
        raise OptionError("Only socket address types 'unix' and 'fd' are supported")
    if isinstance(options.addr, UnixSocketAddress) and options.addr.abstract:
        raise OptionError("Abstract sockets are not available in vhostblk yet")
    _check_block_size(f"{options.id}.logical-block-size", options.logical_block_size)
    if options.num_queues == 0:
        raise OptionError("num-queues must be greater than 0")
    size = options.queue_size
    if isinstance(size, int) and not (2 <= size <= MAX_QUEUE_SIZE and size.bit_count() == 1):
        raise OptionError(
            f"x-vhostblk-queue-size must be a power of 2 between 2 and {MAX_QUEUE_SIZE}, not {size}"
        )
    _check_serial(options.serial)
    _check_iothreads(options)
    _check_socket(options)


def _check_block_size(name: str, value: int) -> None:
    if not MIN_BLOCK_SIZE <= value <= MAX_BLOCK_SIZE:
        raise OptionError(
            f"Property {name} doesn't take value {value} "
            f"(minimum: {MIN_BLOCK_SIZE}, maximum: {MAX_BLOCK_SIZE})"
        )
    if value.bit_count() != 1:
        raise OptionError(f"Property {name} doesn't take value '{value}', it's not a power of 2")


def _check_iothreads(options: BlockExportOptionsVhostUserBlk) -> None:
    if options.iothreads is UNSET:
        return
    if not options.iothreads:
        raise OptionError("x-vhostblk-iothreads must name at least one iothread")
    if options.iothread is not UNSET:
        raise OptionError("iothread and x-vhostblk-iothreads exclude each other")


def _check_socket(options: BlockExportOptionsVhostUserBlk) -> None:
    if isinstance(options.addr, UnixSocketAddress):
        socket_mode(options)
        return
    for name, value in (
        ("x-vhostblk-socket-mode", options.socket_mode),
        ("x-vhostblk-socket-group", options.socket_group),
    ):
        if value is not UNSET:
            raise OptionError(f"{name} is for sockets that are created here (addr.type=unix)")


def socket_mode(options: BlockExportOptionsVhostUserBlk) -> int | None:
    """Return the permissions of the socket file; raises OptionError where they make no sense."""
    text = options.socket_mode
    if not isinstance(text, str):
        return None
    if not (1 <= len(text) <= 4 and set(text) <= set("01234567") and int(text, 8) <= 0o777):
        raise OptionError(
            f"x-vhostblk-socket-mode takes octal permissions such as 0660, not {text}"
        )
    return int(text, 8)


def _check_serial(serial: str | UnsetType) -> None:
    if not isinstance(serial, str):
        return
    if not (serial.isascii() and serial.isprintable()):
        raise OptionError("x-vhostblk-serial takes printable ASCII characters only")
    if len(serial) > MAX_SERIAL_BYTES:
        raise OptionError(
            f"x-vhostblk-serial takes at most {MAX_SERIAL_BYTES} characters, not {len(serial)}"
        )


# Commands, answers and events.


class BlockExportType(Enum):
    """`BlockExportType`: those that exist here."""

    VHOST_USER_BLK = "vhost-user-blk"


class BlockExportRemoveMode(Enum):
    """What becomes of clients when their export is removed."""

    #: Refused while there are any.
    SAFE = "safe"
    #: They are disconnected.
    HARD = "hard"


class BlockExportDel(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `block-export-del`."""

    id: str
    mode: BlockExportRemoveMode = BlockExportRemoveMode.SAFE


class BlockExportInfo(QapiStruct, kw_only=True, frozen=True):
    """One export in the answer of `query-block-exports`."""

    id: str
    type: BlockExportType
    node_name: str
    shutting_down: bool


class BlockExportDeleted(QapiStruct, kw_only=True, frozen=True):
    """Data of the event `BLOCK_EXPORT_DELETED`."""

    id: str


class QueryExportStats(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `x-vhostblk-query-export-stats`."""

    #: Only this export.
    id: str | UnsetType = UNSET


class RequestStats(QapiStruct, kw_only=True, frozen=True):
    """What one queue did of one kind of request."""

    operations: int
    bytes: int
    failed: int
    total_ns: int
    #: Requests done together with the one before them.
    merged: int
    #: Requests by duration: the n-th took at least 2**n ns and less than 2**(n+1).
    latency: list[int]


class QueueStats(QapiStruct, kw_only=True, frozen=True):
    """What one queue has done since its export started."""

    index: int
    read: RequestStats
    write: RequestStats
    flush: RequestStats
    #: Discards and write-zeroes.
    unmap: RequestStats
    #: Requests refused because they broke the rules.
    invalid: int
    #: Requests that the express lane handed to the Python lane.
    upcalls: int
    #: Looks at the available ring that found something.
    sweeps: int
    #: Interrupts sent.
    notified: int
    #: Kicks received.
    kicks: int


class ExportStats(QapiStruct, kw_only=True, frozen=True):
    """One export in the answer of `x-vhostblk-query-export-stats`."""

    id: str
    node_name: str
    #: Clients connected now.
    clients: int
    queues: list[QueueStats]

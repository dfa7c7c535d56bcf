# SPDX-License-Identifier: Apache-2.0
"""Options of vhost-user-blk exports."""

from __future__ import annotations

from msgspec import field

from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.common import Size, Uint16, Uint32  # noqa: TC001 (read at run time)
from vhostblk.schema.errors import OptionError
from vhostblk.schema.export import BlockExportOptions
from vhostblk.schema.socket import FdSocketAddress, SocketAddress, UnixSocketAddress

#: QEMU's bounds of a block size (`hw/core/qdev-properties-system.c`).
MIN_BLOCK_SIZE = 512
MAX_BLOCK_SIZE = 2 << 20

#: The message that sets a kick descriptor has eight bits for the queue's number.
MAX_QUEUES = 256

#: VIRTIO 1.3, 2.7: the largest split virtqueue.
MAX_QUEUE_SIZE = 32768

#: VIRTIO 1.3, 5.2.6: the length of the identification string.
MAX_SERIAL_BYTES = 20


class BlockExportOptionsVhostUserBlk(
    BlockExportOptions, tag="vhost-user-blk", kw_only=True, frozen=True
):
    """A vhost-user-blk device."""

    addr: SocketAddress
    logical_block_size: Size = 512
    num_queues: Uint16 = 1
    #: The disk's serial number, ASCII.
    serial: str | UnsetType = field(name="x-vhostblk-serial", default=UNSET)
    #: Expected queue size, a power of two: it determines the maximum number of segments.
    queue_size: Uint32 | UnsetType = field(name="x-vhostblk-queue-size", default=UNSET)
    #: Spread the queues over these iothreads, in turn.
    iothreads: list[str] | UnsetType = field(name="x-vhostblk-iothreads", default=UNSET)
    #: Permissions of the socket file, octal, and its group, by name or number.
    socket_mode: str | UnsetType = field(name="x-vhostblk-socket-mode", default=UNSET)
    socket_group: str | UnsetType = field(name="x-vhostblk-socket-group", default=UNSET)
    #: Let other processes write the image at the same time, as QEMU's daemon does.
    share_rw: bool = field(name="x-vhostblk-share-rw", default=False)

    def iothread_names(self) -> list[str]:
        """Return the names of the iothreads, which queues use in turn."""
        return super().iothread_names() if self.iothreads is UNSET else self.iothreads

    def shares_writing(self) -> bool:
        """Return the value of `x-vhostblk-share-rw`."""
        return self.share_rw

    def check(self) -> None:
        """Check the values; raises OptionError."""
        _check(self)


def _check(options: BlockExportOptionsVhostUserBlk) -> None:
    if not isinstance(options.addr, UnixSocketAddress | FdSocketAddress):
        raise OptionError("Only socket address types 'unix' and 'fd' are supported")
    if isinstance(options.addr, UnixSocketAddress) and options.addr.abstract:
        raise OptionError("Abstract sockets are not available in vhostblk yet")
    _check_block_size(f"{options.id}.logical-block-size", options.logical_block_size)
    if options.num_queues == 0:
        raise OptionError("num-queues must be greater than 0")
    if options.num_queues > MAX_QUEUES:
        raise OptionError(
            f"num-queues must not be greater than {MAX_QUEUES}, as vhost-user can't number more"
        )
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
            raise OptionError(
                f"{name} is only for sockets that the daemon creates (addr.type=unix)"
            )


def socket_mode(options: BlockExportOptionsVhostUserBlk) -> int | None:
    """Return the permissions of the socket file; raises OptionError if they are invalid."""
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

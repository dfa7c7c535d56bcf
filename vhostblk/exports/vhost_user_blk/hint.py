# SPDX-License-Identifier: Apache-2.0
"""The QEMU arguments that connect a virtual machine to an export."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from vhostblk.schema.socket import FdSocketAddress, UnixSocketAddress

if TYPE_CHECKING:
    from vhostblk.schema.exports.vhost_user_blk import BlockExportOptionsVhostUserBlk
    from vhostblk.schema.socket import SocketAddress

#: vhost-user needs guest memory that another process can map.
MEMORY_ARGUMENTS = (
    *("-m", "1G"),
    *("-object", "memory-backend-memfd,id=mem,size=1G,share=on"),
    *("-machine", "memory-backend=mem"),
)


def qemu_arguments(options: BlockExportOptionsVhostUserBlk) -> list[str] | None:
    """Return the arguments for one export; None if its socket has no path.

    The size in the memory's two arguments is an example.
    """
    path = _socket_path(options.addr)
    if path is None:
        return None
    chardev = f"socket,id={options.id},path={path.replace(',', ',,')}"
    # By default QEMU uses a queue for each processor, and fails if the back-end has fewer.
    device = f"vhost-user-blk-pci,chardev={options.id},num-queues={options.num_queues}"
    return [*MEMORY_ARGUMENTS, "-chardev", chardev, "-device", device]


def _socket_path(addr: SocketAddress) -> str | None:
    if isinstance(addr, UnixSocketAddress):
        return str(Path(addr.path).absolute())
    if not isinstance(addr, FdSocketAddress):
        return None
    try:
        listener = socket.socket(fileno=int(addr.fd))
    except (OSError, ValueError, OverflowError):
        return None
    try:
        name = listener.getsockname()
    except OSError:
        return None
    finally:
        listener.detach()
    return name if isinstance(name, str) and name else None

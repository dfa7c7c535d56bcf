# SPDX-License-Identifier: Apache-2.0
"""The vhost-user-blk export: a device (`device.py`) and its server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from vhostblk.block import SECTOR
from vhostblk.errors import VhostblkError
from vhostblk.exports.base import Export
from vhostblk.exports.vhost_user_blk.carried import CarriedSession, decode
from vhostblk.exports.vhost_user_blk.device import VhostUserBlkDevice, prepare
from vhostblk.exports.vhost_user_blk.hint import qemu_arguments
from vhostblk.net.listener import FdAddress, ListenAddress, UnixAddress
from vhostblk.schema.exports.vhost_user_blk import BlockExportOptionsVhostUserBlk, socket_mode
from vhostblk.schema.socket import FdSocketAddress, UnixSocketAddress
from vhostblk.trace import points as trace
from vhostblk.vhost_user.server import VhostUserServer
from vhostblk.virtio_blk.lane import choose_lane

if TYPE_CHECKING:
    import msgspec

    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.engine.iothreads import Iothreads
    from vhostblk.exports.base import Carried, Descriptors


class VhostUserBlkExport(Export):
    """One vhost-user-blk device, for one front-end at a time."""

    options_type = BlockExportOptionsVhostUserBlk
    request_alignment: ClassVar[int] = SECTOR

    def __init__(
        self,
        options: BlockExportOptionsVhostUserBlk,
        backend: BlockBackend,
        iothreads: Iothreads,
    ) -> None:
        """Raises VhostblkError if the node can't be exported as such a device."""
        super().__init__(options, backend, iothreads)
        block = options.logical_block_size
        size = backend.node.exact_size
        if size % block:
            raise VhostblkError(
                f"Cannot export '{backend.node.filename}': its size of {size} bytes is "
                f"not a multiple of the logical block size, {block}"
            )
        self.device = VhostUserBlkDevice(options, backend, iothreads)
        self._server = VhostUserServer(_listen_address(options), self.device, options.id)

    @classmethod
    def connect_hint(cls, options: BlockExportOptionsVhostUserBlk) -> list[str] | None:
        """Return QEMU's arguments for the device."""
        return qemu_arguments(options)

    @classmethod
    async def prepare(cls) -> None:
        """Import the modules for serving."""
        await prepare(choose_lane())

    @classmethod
    def decode(cls, state: msgspec.Raw, fds: Descriptors) -> tuple[Carried, list[str | None]]:
        """Decode a listening socket, a front-end's connection, and its messages."""
        return decode(state, fds)

    async def start(self, carried: CarriedSession | None = None, *, movable: bool = False) -> None:
        """Begin to listen."""
        self.backend.add_drain_listener(self.device)
        try:
            await self._server.start(None if carried is None else carried.session, movable=movable)
        except BaseException:
            self.backend.remove_drain_listener(self.device)
            raise
        if trace.blk_exp_start.enabled:
            trace.blk_exp_start(self.id, self.backend.node.node_name)
        self.backend.on_resize(self.device.resized)

    def resume(self) -> None:
        """Take requests and messages, after a start with `carried`."""
        super().resume()
        self._server.resume()

    async def stop(self) -> None:
        """Complete the front-end's requests, disconnect it, and stop listening."""
        if trace.blk_exp_stop.enabled:
            trace.blk_exp_stop(self.id, self.backend.node.node_name)
        await self._server.stop()
        self.backend.remove_drain_listener(self.device)
        if self.backend.writable:
            await self.backend.flush()

    async def suspend(self) -> CarriedSession:
        """Complete requests; the front-end stays connected. The caller flushes the node."""
        carried = await self._server.suspend()
        self.backend.remove_drain_listener(self.device)
        return CarriedSession(carried)

    @property
    def clients(self) -> int:
        """Whether a front-end is connected."""
        return int(self._server.connected)

    @property
    def made_files(self) -> list[str]:
        """The socket's file."""
        return self._server.made_files

    def statistics(self) -> dict[int, dict[str, Any]]:
        """Return the statistics of each queue since the export started."""
        return self.device.statistics()


def _listen_address(options: BlockExportOptionsVhostUserBlk) -> ListenAddress:
    match options.addr:
        case UnixSocketAddress(path=path):
            group = options.socket_group
            return UnixAddress(
                path, socket_mode(options), group if isinstance(group, str) else None
            )
        case FdSocketAddress(fd=fd):
            return FdAddress(fd)
    raise VhostblkError("Only socket address types 'unix' and 'fd' are supported")

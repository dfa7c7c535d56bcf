# SPDX-License-Identifier: Apache-2.0
"""The messages of a session for migration: dirty log, post-copy, and the device's own state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from vhostblk.vhost_user.errors import DeviceStateError, PostcopyError, UnknownRequestError
from vhostblk.vhost_user.layout import (
    DEVICE_STATE,
    DEVICE_STATE_NOFD,
    LOG,
    MEMORY_REGION,
    U64,
    ProtocolFeature,
    Request,
)
from vhostblk.vhost_user.rules import ReplyWithFd
from vhostblk.virtqueue.config import LogDescription

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.vhost_user.backend import Backend, DirtyLogging
    from vhostblk.vhost_user.codec import Message
    from vhostblk.vhost_user.device_state import DeviceState
    from vhostblk.vhost_user.postcopy import Postcopy
    from vhostblk.vhost_user.vring import Vring
    from vhostblk.virtqueue.config import RegionDescription
    from vhostblk.virtqueue.mapping import Mapping

#: The values for success and failure in replies.
ACK = 0
NACK = 1

#: The kinds of a confirmation. QEMU uses the kind of the last message that it has sent for a table,
#: or NONE if the table has not changed.
_CONFIRMING = frozenset(
    {Request.NONE, Request.SET_MEM_TABLE, Request.ADD_MEM_REG, Request.REM_MEM_REG}
)


class MigrationMessages(ABC):
    """The messages of a migration; a part of `Session`."""

    _backend: Backend
    _vrings: list[Vring]
    _protocol_features: ProtocolFeature
    _device_state: DeviceState
    _postcopy: Postcopy

    @abstractmethod
    async def _start(
        self, index: int, take_kick: Callable[[], int | None], *, inband: bool
    ) -> None:
        """Start a vring."""

    # Dirty log

    def _dirty_logging(self) -> DirtyLogging:
        if self._backend.dirty_logging is None:
            raise UnknownRequestError("not supported, and not offered")
        return self._backend.dirty_logging

    async def _set_log_base(self, message: Message) -> bytes | None:
        logging = self._dirty_logging()
        size, offset = LOG.unpack(message.payload)
        (fd,) = message.fds.take_all()
        await logging.set_log(LogDescription(size, offset, fd))
        # Only front-ends that support the descriptor expect the reply.
        return U64.pack(ACK) if ProtocolFeature.LOG_SHMFD in self._protocol_features else None

    async def _set_log_fd(self, message: Message) -> None:
        logging = self._dirty_logging()
        (fd,) = message.fds.take_all()
        await logging.set_event(fd)

    # Device state

    async def _set_device_state_fd(self, message: Message) -> bytes:
        if any(vring.started for vring in self._vrings):
            raise DeviceStateError("a vring is running")
        (fd,) = message.fds.take_all()
        direction, phase = DEVICE_STATE.unpack(message.payload)
        self._device_state.begin(direction, phase, fd)
        return U64.pack(ACK | DEVICE_STATE_NOFD)

    async def _check_device_state(self, message: Message) -> bytes:
        self._device_state.check()
        return U64.pack(ACK)

    # Post-copy

    async def _postcopy_advise(self, message: Message) -> ReplyWithFd:
        return ReplyWithFd(b"", self._postcopy.advise())

    async def _postcopy_listen(self, message: Message) -> None:
        if any(vring.started for vring in self._vrings):
            raise PostcopyError("a vring is running")
        self._postcopy.listen()

    def _arriving(self, region: RegionDescription, mapping: Mapping) -> bytes:
        """Register memory without its content; return the memory's description for the reply.

        It is the front-end's description, with the user address replaced by ours.
        """
        self._postcopy.register(*mapping.pages)
        return MEMORY_REGION.pack(
            region.guest_addr, region.size, mapping.address, region.mmap_offset
        )

    def _confirms(self, message: Message) -> bool:
        """Return whether a message only confirms the addresses of mapped memory."""
        return (
            self._postcopy.listening
            and message.request in _CONFIRMING
            and message.payload == U64.pack(ACK)
        )

    async def _confirmed(self, message: Message) -> None:
        return

    async def _postcopy_end(self, message: Message) -> bytes:
        deferred = self._postcopy.end()
        try:
            for index, kick in deferred.items():
                await self._start(index, kick.take_only, inband=self._vrings[index].inband)
        finally:
            for kick in deferred.values():
                kick.close()
        return U64.pack(ACK)

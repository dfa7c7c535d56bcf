# SPDX-License-Identifier: Apache-2.0
"""The messages of a session about the device: its status and its configuration space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from vhostblk.vhost_user import payloads
from vhostblk.vhost_user.errors import ConfigAccessError, FeatureError
from vhostblk.vhost_user.layout import (
    CONFIG_HEADER,
    CONFIG_MIGRATION,
    F_VERSION_1,
    MAX_STATUS,
    STATUS_FEATURES_OK,
    STATUS_NEEDS_RESET,
    U64,
)
from vhostblk.vhost_user.rules import Remark

if TYPE_CHECKING:
    from vhostblk.vhost_user.backend import Backend
    from vhostblk.vhost_user.codec import Message

#: The reason for refusing a legacy driver (before VIRTIO 1.0).
LEGACY = "the driver didn't accept VERSION_1; legacy is not supported"


class DeviceMessages(ABC):
    """A part of `Session`."""

    _backend: Backend
    _features: int
    #: The accepted part of the device status that the driver has written (VIRTIO 1.3, 2.1).
    _status: int

    @abstractmethod
    async def _reset(self) -> None:
        """Stop all vrings and reset the driver's settings."""

    # Status

    async def _set_status(self, message: Message) -> Remark | None:
        (status,) = U64.unpack(message.payload)
        if status > MAX_STATUS:
            raise FeatureError(f"device status {status:#x} is no byte")
        if status == 0:
            await self._reset()
        # The device sets NEEDS_RESET.
        self._status = status & ~STATUS_NEEDS_RESET
        reason = self._refusal()
        if not status & STATUS_FEATURES_OK or reason is None:
            return None
        self._status &= ~STATUS_FEATURES_OK
        return Remark(f"{message.name}: FEATURES_OK refused: {reason}")

    async def _get_status(self, message: Message) -> bytes:
        needs_reset = STATUS_NEEDS_RESET if self._backend.needs_reset else 0
        return U64.pack(self._status | needs_reset)

    @property
    def _is_legacy(self) -> bool:
        return not self._features & F_VERSION_1 and bool(
            self._backend.device_features & F_VERSION_1
        )

    def _refusal(self) -> str | None:
        """Return why the accepted features are not sufficient; None if they are."""
        return LEGACY if self._is_legacy else self._backend.refusal(self._features)

    # Configuration space

    async def _get_config(self, message: Message) -> bytes:
        offset, size, flags = CONFIG_HEADER.unpack_from(message.payload)
        payloads.check_config_range(offset, size)
        content = self._backend.get_config(offset, size)
        return CONFIG_HEADER.pack(offset, size, flags) + content

    async def _set_config(self, message: Message) -> None:
        offset, size, flags = CONFIG_HEADER.unpack_from(message.payload)
        data = message.payload[CONFIG_HEADER.size :]
        payloads.check_config_range(offset, size)
        if len(data) != size:
            raise ConfigAccessError(f"{len(data)} bytes where {size} were announced")
        if flags > CONFIG_MIGRATION:
            raise ConfigAccessError(f"unknown flags {flags:#x}")
        self._backend.set_config(offset, data)

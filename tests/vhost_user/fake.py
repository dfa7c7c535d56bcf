# SPDX-License-Identifier: Apache-2.0
"""A `Backend` that does nothing but remember what it was told."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from vhostblk.vhost_user.errors import VhostUserError
from vhostblk.vhost_user.layout import F_VERSION_1
from vhostblk.virtqueue.inflight_area import make_inflight

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vhostblk.vhost_user.backend import BackendChannel
    from vhostblk.virtqueue.config import (
        InflightDescription,
        LogDescription,
        RegionDescription,
        VringConfig,
    )

#: A device feature beyond VERSION_1.
FEATURE = 1 << 9


class FakeMapping:
    """Where a region would be mapped."""

    def __init__(self, region: RegionDescription) -> None:
        self.address = region.guest_addr + (1 << 40)
        self.pages = (self.address, region.size)


class FakeDirtyLogging:
    """The part of a `FakeBackend` that notes writes."""

    def __init__(self, backend: FakeBackend) -> None:
        self._backend = backend

    async def set_log(self, described: LogDescription) -> None:
        size, offset = described.mmap_size, described.mmap_offset
        self._backend.called("set_log", size, offset, fds=[described.fd])

    async def set_logging(self, enabled: bool) -> None:
        if enabled != self._backend.logging:
            self._backend.called("set_logging", enabled)
            self._backend.logging = enabled

    async def set_event(self, fd: int) -> None:
        self._backend.called("set_event", fds=[fd])


class FakeBackend:
    """Records every call as (method, arguments...) in `calls`; closes every descriptor at once.

    `failing` maps a method's name to the exception that it raises. `stop_at` is what vrings that
    stop give as their index.
    """

    def __init__(self, num_queues: int = 2) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failing: dict[str, Exception] = {}
        self.stop_at = 7
        self.broken = False
        #: Drivers have to accept `FEATURE`.
        self.demanding = False
        self.channel: BackendChannel | None = None
        #: Front-ends are served while it is set.
        self.prepared = asyncio.Event()
        self.prepared.set()
        self.preparing = asyncio.Event()
        self.disconnect: Callable[[str], None] | None = None
        self.config = bytes(range(60))
        self._num_queues = num_queues
        self.logging = False
        self.dirty_logging: FakeDirtyLogging | None = FakeDirtyLogging(self)

    def called(self, name: str, *arguments: object, fds: Sequence[int | None] = ()) -> None:
        """Take a call down."""
        for fd in fds:
            if fd is not None:
                os.close(fd)
        self.calls.append((name, *arguments))
        if name in self.failing:
            raise self.failing[name]

    async def prepare(self) -> None:
        self.preparing.set()
        await self.prepared.wait()

    def take_calls(self) -> list[tuple[Any, ...]]:
        """Return the calls since the last time."""
        calls, self.calls = self.calls, []
        return calls

    @property
    def device_features(self) -> int:
        return F_VERSION_1 | FEATURE

    @property
    def num_queues(self) -> int:
        return self._num_queues

    @property
    def needs_reset(self) -> bool:
        return self.broken

    def refusal(self, features: int) -> str | None:
        return "FEATURE is missing" if self.demanding and not features & FEATURE else None

    def get_config(self, offset: int, size: int) -> bytes:
        self.called("get_config", offset, size)
        return self.config[offset : offset + size].ljust(size, b"\0")

    def set_config(self, offset: int, data: bytes) -> None:
        self.called("set_config", offset, data)
        if offset != 32:
            raise VhostUserError("read-only")

    def written_config(self) -> list[tuple[int, bytes]]:
        return []

    def set_features(self, features: int) -> None:
        self.called("set_features", features)

    async def set_memory(self, regions: Sequence[RegionDescription]) -> list[Any]:
        plain = [(r.guest_addr, r.size, r.user_addr, r.mmap_offset) for r in regions]
        self.called("set_memory", plain, fds=[region.fd for region in regions])
        return [FakeMapping(region) for region in regions]

    async def add_region(self, region: RegionDescription) -> Any:
        self.called("add_region", region.guest_addr, region.size, fds=[region.fd])
        return FakeMapping(region)

    async def remove_region(self, guest_addr: int, size: int, user_addr: int) -> None:
        self.called("remove_region", guest_addr, size, user_addr)

    def make_inflight(self, num_queues: int, queue_size: int) -> InflightDescription:
        self.called("make_inflight", num_queues, queue_size)
        return make_inflight(num_queues, queue_size, lambda size: 16 * size)

    def set_inflight(self, inflight: InflightDescription | None) -> None:
        if inflight is None:
            self.called("set_inflight", None)
            return
        self.called("set_inflight", replace(inflight, fd=-1), fds=[inflight.fd])

    async def claim(self) -> None:
        self.called("claim")

    async def start_vring(self, config: VringConfig, kick_fd: int | None) -> None:
        self.called("start_vring", config, kick_fd is not None, fds=[kick_fd])

    async def set_vring_log(self, index: int, log_addr: int | None) -> None:
        self.called("set_vring_log", index, log_addr)

    async def stop_vring(self, index: int) -> int:
        self.called("stop_vring", index)
        return self.stop_at

    def set_vring_enabled(self, index: int, enabled: bool) -> None:
        self.called("set_vring_enabled", index, enabled)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        self.called("set_vring_call", index, fd is not None, fds=[fd])

    def set_vring_err(self, index: int, fd: int | None) -> None:
        self.called("set_vring_err", index, fd is not None, fds=[fd])

    def set_disconnect(self, disconnect: Callable[[str], None] | None) -> None:
        self.disconnect = disconnect

    def set_channel(self, channel: BackendChannel | None) -> None:
        self.channel = channel

    def abandon(self) -> None:
        self.called("abandon")

    async def reset(self) -> None:
        self.called("reset")

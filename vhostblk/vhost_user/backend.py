# SPDX-License-Identifier: Apache-2.0
"""The interface of a device for the vhost-user transport: the contract of server and export.

The server (`vhostblk.vhost_user.server`) owns the socket and the protocol's state; a `Backend` owns
guest memory and the queues. The session has validated every argument before a method is called:
indices are below `num_queues`, sizes are at most 32768, and powers of two unless rings are packed,
and a started vring is not started again. The backend owns the file descriptors that it gets, also
if it raises.

If a method raises `OSError` or `SetupError`, the message fails: the front-end gets a negative reply
if it asked for one (REPLY_ACK), and is disconnected otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vhostblk.virtqueue.config import (
        InflightDescription,
        LogDescription,
        RegionDescription,
        VringConfig,
    )
    from vhostblk.virtqueue.mapping import Mapping


class DirtyLogging(Protocol):
    """Logging of writes to guest memory ("Migration"); it may change while vrings run."""

    async def set_log(self, described: LogDescription) -> None:
        """Use a log; raises SetupError if it is too small."""

    async def set_logging(self, enabled: bool) -> None:
        """Turn logging of requests' writes on or off (LOG_ALL); it begins once there is a log."""

    async def set_event(self, fd: int) -> None:
        """Set the eventfd that notifies the front-end of changes."""


class BackendChannel(Protocol):
    """The back-end's own requests to the front-end (BACKEND_REQ)."""

    def config_changed(self) -> None:
        """Send VHOST_USER_BACKEND_CONFIG_CHANGE_MSG."""


class Backend(Protocol):
    """A vhost-user device."""

    @property
    def device_features(self) -> int:
        """The virtio feature bits offered, except the transport's own (PROTOCOL_FEATURES)."""

    @property
    def num_queues(self) -> int:
        """The number of queues that a front-end may use."""

    @property
    def dirty_logging(self) -> DirtyLogging | None:
        """The logging of writes for a migration; None if it is not available."""

    async def prepare(self) -> None:
        """Prepare for a front-end that has connected; called before all other methods."""

    @property
    def needs_reset(self) -> bool:
        """Whether a vring is broken, which needs a reset (VIRTIO 1.3, 2.1.2)."""

    def get_config(self, offset: int, size: int) -> bytes:
        """Return `size` bytes of configuration space, with zeroes past its end."""

    def set_config(self, offset: int, data: bytes) -> None:
        """Write configuration space; raises SetupError if a field is not writable."""

    def written_config(self) -> Sequence[tuple[int, bytes]]:
        """Return offset and content of the effective writes of `set_config`."""

    def set_features(self, features: int) -> None:
        """Set the acknowledged virtio features (a subset of those offered)."""

    def refusal(self, features: int) -> str | None:
        """Return why a driver with these features can't use the device; None if it can.

        A front-end that passes the device status on sees it in FEATURES_OK (VIRTIO 1.3, 3.1.1).
        Vrings may be started nevertheless, because other front-ends don't ask.
        """

    async def set_memory(self, regions: Sequence[RegionDescription]) -> list[Mapping]:
        """Replace the whole memory table; return when the old one is not used any more.

        The result are the regions' mappings, in the same order.
        """

    async def add_region(self, region: RegionDescription) -> Mapping:
        """Add one region (ADD_MEM_REG); return its mapping."""

    async def remove_region(self, guest_addr: int, size: int, user_addr: int) -> None:
        """Remove one region (REM_MEM_REG); return when it is not used any more."""

    def make_inflight(self, num_queues: int, queue_size: int) -> InflightDescription:
        """Create memory for the record of requests in flight; the caller owns the descriptor.

        There are at most `num_queues` queues, with 1 to 32768 entries.
        """

    def set_inflight(self, inflight: InflightDescription | None) -> None:
        """Set the memory for the record of requests in flight (None: no record).

        Vrings that start later use it. Requests in their record are in flight since before a crash.
        """

    async def claim(self) -> None:
        """Acquire what vrings need to start; some will start once guest memory has arrived."""

    async def start_vring(self, config: VringConfig, kick_fd: int | None) -> None:
        """Start processing; without a kick descriptor the backend polls the avail ring."""

    async def set_vring_log(self, index: int, log_addr: int | None) -> None:
        """Log writes to the used ring of a running vring, or not; see `VringConfig`."""

    async def stop_vring(self, index: int) -> int:
        """Complete requests in flight, close the kick and call descriptors, return `next_avail`.

        This includes requests that an earlier process left in flight, even if this process has not
        taken them yet.
        """

    def set_vring_enabled(self, index: int, enabled: bool) -> None:
        """Enable or disable a vring, also before it starts. Vrings are disabled at first."""

    def set_vring_call(self, index: int, fd: int | None) -> None:
        """Set the eventfd that notifies the guest (None: the guest polls); at any time."""

    def set_vring_err(self, index: int, fd: int | None) -> None:
        """Set the eventfd that notifies the front-end of a broken vring."""

    def set_disconnect(self, disconnect: Callable[[str], None] | None) -> None:
        """Set the callback that ends the session for a reason other than a message."""

    def set_channel(self, channel: BackendChannel | None) -> None:
        """Set the channel for requests to the front-end."""

    def abandon(self) -> None:
        """Note that the front-end will be disconnected: calls that wait may fail."""

    async def reset(self) -> None:
        """Stop all vrings, complete requests in flight and unmap memory, after a disconnection.

        Requests that an earlier process left in flight, and that were not taken yet, stay in the
        record. Afterwards the backend is ready for the next front-end.
        """

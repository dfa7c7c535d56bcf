# SPDX-License-Identifier: Apache-2.0
"""What the vhost-user transport asks of a device: the contract between server and export.

The server (`vhostblk.vhost_user.server`) owns the socket and the protocol's state; a `Backend` owns
guest memory and the queues. The session has validated every argument before a method is called:
indices are below `num_queues`, sizes are up to 32768, and powers of two unless rings are packed, a
started vring is not started again. File descriptors handed over belong to the backend from then
on, also when it raises.

A method that raises `OSError` or `SetupError` fails the message: the front-end gets a negative
reply where it asked for one (REPLY_ACK) and is disconnected otherwise.
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
    """Notes writes to guest memory for a migration ("Migration"); may change while vrings run."""

    async def set_log(self, described: LogDescription) -> None:
        """Use a log; raises SetupError where it is too small for what is to be noted."""

    async def set_logging(self, enabled: bool) -> None:
        """Note what requests write, or not (LOG_ALL); without a log, once there is one."""

    async def set_event(self, fd: int) -> None:
        """Set the eventfd that tells the front-end of changes."""


class BackendChannel(Protocol):
    """The back-end's own requests to the front-end (BACKEND_REQ)."""

    def config_changed(self) -> None:
        """Send VHOST_USER_BACKEND_CONFIG_CHANGE_MSG."""


class Backend(Protocol):
    """A vhost-user device."""

    @property
    def device_features(self) -> int:
        """Virtio feature bits offered, the transport's own (PROTOCOL_FEATURES) excepted."""

    @property
    def num_queues(self) -> int:
        """How many queues a front-end may use."""

    @property
    def dirty_logging(self) -> DirtyLogging | None:
        """The way to have writes noted for a migration; None: there is none."""

    async def prepare(self) -> None:
        """Get ready for a front-end, which has connected; nothing else is called before it."""

    @property
    def needs_reset(self) -> bool:
        """Whether a vring is broken, so that only a reset helps (VIRTIO 1.3, 2.1.2)."""

    def get_config(self, offset: int, size: int) -> bytes:
        """Return `size` bytes of configuration space; zeroes past its end."""

    def set_config(self, offset: int, data: bytes) -> None:
        """Write configuration space; raises SetupError on what is not writable."""

    def written_config(self) -> Sequence[tuple[int, bytes]]:
        """Return what `set_config` has written, as far as it is in force: offsets and content."""

    def set_features(self, features: int) -> None:
        """Take the virtio features acknowledged (a subset of those offered)."""

    def refusal(self, features: int) -> str | None:
        """Say why a driver that accepted these features can't use the device; None: it can.

        A front-end that passes the device status on is told (FEATURES_OK, VIRTIO 1.3, 3.1.1).
        Vrings may be started nevertheless: others don't ask.
        """

    async def set_memory(self, regions: Sequence[RegionDescription]) -> list[Mapping]:
        """Replace the whole memory table; returns when nothing uses the old one.

        Returns the regions' mappings, in the same order.
        """

    async def add_region(self, region: RegionDescription) -> Mapping:
        """Add one region (ADD_MEM_REG); return its mapping."""

    async def remove_region(self, guest_addr: int, size: int, user_addr: int) -> None:
        """Remove one region (REM_MEM_REG); returns when nothing uses it."""

    def make_inflight(self, num_queues: int, queue_size: int) -> InflightDescription:
        """Make memory for requests in flight; the descriptor is the caller's.

        There are at most as many queues as `num_queues` says, and 1 to 32768 entries.
        """

    def set_inflight(self, inflight: InflightDescription | None) -> None:
        """Note requests in flight there (None: nowhere), in vrings that start from now on.

        What the memory says of a vring that starts is in flight already, from before a crash.
        """

    async def claim(self) -> None:
        """Have what vrings take when they start; some will, once guest memory has come."""

    async def start_vring(self, config: VringConfig, kick_fd: int | None) -> None:
        """Start processing; without a kick descriptor the avail ring has to be polled."""

    async def set_vring_log(self, index: int, log_addr: int | None) -> None:
        """Note writes to the used ring of a running vring there, or not; see `VringConfig`."""

    async def stop_vring(self, index: int) -> int:
        """Finish requests in flight, close the kick and call descriptors, return `next_avail`.

        Requests that an earlier process left in flight are finished, too, even if this process has
        not taken them yet.
        """

    def set_vring_enabled(self, index: int, enabled: bool) -> None:
        """Let a vring be processed or not; may come before it starts. All begin disabled."""

    def set_vring_call(self, index: int, fd: int | None) -> None:
        """Set the eventfd that notifies the guest (None: the guest polls); at any time."""

    def set_vring_err(self, index: int, fd: int | None) -> None:
        """Set the eventfd that tells the front-end of a broken vring."""

    def set_disconnect(self, disconnect: Callable[[str], None] | None) -> None:
        """Set the way to end the session for a reason that no message has brought up."""

    def set_channel(self, channel: BackendChannel | None) -> None:
        """Set the way to send requests to the front-end."""

    def abandon(self) -> None:
        """Note that the front-end is about to be disconnected: calls that wait may fail."""

    async def reset(self) -> None:
        """Stop all vrings, finish in-flight requests, unmap memory: the front-end has gone.

        Requests that an earlier process left in flight, and that were not taken yet, stay in the
        record. Afterwards the backend is ready for the next front-end.
        """

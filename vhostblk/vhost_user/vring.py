# SPDX-License-Identifier: Apache-2.0
"""The state of a vring in a session, and the checks of its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from vhostblk.vhost_user.codec import FdList
from vhostblk.vhost_user.errors import VringStateError
from vhostblk.vhost_user.layout import MAX_RING_SIZE

if TYPE_CHECKING:
    from vhostblk.virtqueue.config import VringConfig


class Vring(msgspec.Struct):
    """The settings of one vring by the front-end."""

    size: int = 0
    #: Descriptor table, avail ring, used ring, as front-end user addresses.
    addresses: tuple[int, int, int] | None = None
    #: The guest address at which writes to the used ring are logged.
    log_addr: int | None = None
    base: int = 0
    base_set_since_start: bool = False
    #: The configuration with which it was started; None if it is stopped.
    running: VringConfig | None = None
    #: Whether it was started by VRING_KICK, which then also kicks it.
    inband: bool = False
    enabled: bool = False
    #: A duplicate of the call descriptor, because the backend closes its own when a vring stops.
    call: FdList = msgspec.field(default_factory=FdList)
    #: Whether the front-end has set the notification of used buffers, and of errors.
    call_set: bool = False
    err_set: bool = False

    @property
    def started(self) -> bool:
        """Whether it is running."""
        return self.running is not None


def check_size(index: int, size: int, *, packed: bool) -> None:
    """Raise VringStateError for a size that a ring of this kind can't have."""
    if not 1 <= size <= MAX_RING_SIZE or (size & (size - 1) and not packed):
        raise VringStateError(f"vring {index}: invalid size {size}")


def check_base(index: int, base: int, *, packed: bool) -> None:
    """Raise VringStateError for an invalid base: one index, or two places if packed."""
    if base > 0xFFFF and not packed:
        raise VringStateError(f"vring {index}: base {base} is no 16-bit index")

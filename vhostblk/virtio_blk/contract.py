# SPDX-License-Identifier: Apache-2.0
"""The queue contract: what a queue set asks of a queue, whichever lane runs it.

A queue has been *started* from `start` to `stop`. It is *held* while anybody holds it (disabled by
the driver's side, drained, or the memory table changing): requests in flight go on, new ones wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vhostblk.engine.extents import ExtentMap
    from vhostblk.virtqueue.memory import GuestMemory
    from vhostblk.virtqueue.queue_log import QueueLog


class Queue(Protocol):
    """A queue of a virtio block device. It owns its kick descriptor until it stops."""

    index: int

    @property
    def in_flight(self) -> int:
        """Requests taken and not completed."""

    @property
    def broken(self) -> bool:
        """Whether the ring made no sense; no more requests are taken from it then."""

    def start(self) -> None:
        """Take requests, those that are available already first."""

    async def stop(self) -> int:
        """Take no more requests, finish those in flight; return the base to go on from."""

    def hold(self) -> None:
        """Take no more requests until `release`; holds add up."""

    def release(self) -> None:
        """Undo one `hold`."""

    async def wait_idle(self) -> None:
        """Wait until nothing is in flight and everything is published; held."""

    def limit_to_left(self) -> int:
        """Take only requests that an earlier process left in flight, from now on.

        Return how many of them have not been taken yet.
        """

    async def wait_left(self) -> None:
        """Wait until these requests are taken or abandoned, or the ring breaks."""

    def abandon_left(self) -> None:
        """End `wait_left`: the requests stay in the record of requests in flight."""

    def move(self, memory: GuestMemory) -> None:
        """Go on in a new memory table; held and idle.

        Raises SetupError where the ring is not in it, and stays in the old one.
        """

    def kick_copy(self) -> int | None:
        """Return a duplicate of the kick descriptor, for a queue that takes this one's place."""

    def set_log(self, log: QueueLog | None) -> None:
        """Note what is written to guest memory, or not; held and idle, or just made."""

    def set_extents(self, extents: ExtentMap | None) -> None:
        """Go by another extent map (None: by none); held and idle, or just made."""

    def set_call(self, fd: int | None) -> None:
        """Set the descriptor that notifies the guest; the caller closes the former one."""

    def set_err(self, fd: int | None) -> None:
        """Set the descriptor that reports a broken ring; the caller closes the former one."""

    def refresh(self) -> None:
        """Take over the device's size and cache mode, which have changed."""

    def statistics(self) -> NDArray[np.void]:
        """Return what was counted since the start, a `STATS` array of shape (1,)."""

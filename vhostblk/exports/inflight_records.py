# SPDX-License-Identifier: Apache-2.0
"""Where the queues of one device note their requests in flight.

The front-end may give another area at any time; a queue that runs keeps the record that it has.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vhostblk.vhost_user.inflight import InflightArea, make_inflight

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.vhost_user.backend import InflightDescription, VringConfig
    from vhostblk.vhost_user.inflight import InflightPart
    from vhostblk.vhost_user.mapping import LossSignal


class InflightRecords:
    """The front-end's area, and the part of it that each running queue has."""

    def __init__(self, watch: Callable[[], LossSignal]) -> None:
        """`watch()` gives what is to be told when shared memory gets lost."""
        self._watch = watch
        self._area: InflightArea | None = None
        self._parts: dict[int, InflightPart | None] = {}

    def make(self, num_queues: int, queue_size: int) -> InflightDescription:
        """Make an area; its descriptor is the caller's."""
        # Front-ends may ask before they set features: there is room for either kind of ring.
        return make_inflight(num_queues, queue_size, _bytes_for(packed=True))

    def use(self, described: InflightDescription | None, *, packed: bool) -> None:
        """Have queues that start use an area (None: none); raises VhostUserError.

        The descriptor is ours.
        """
        if described is None:
            self._area = None
            return
        try:
            area = InflightArea(described, self._watch())
            area.check(_bytes_for(packed=packed))
        finally:
            os.close(described.fd)
        self._area = area

    def part(self, config: VringConfig) -> InflightPart | None:
        """Return the part that a queue is to have that starts; None: it has none."""
        if self._area is None:
            return None
        return self._area.part(config.index, _bytes_for(packed=config.packed))

    def begin(self, index: int, part: InflightPart | None) -> None:
        """A queue has started with this part."""
        self._parts[index] = part

    def of(self, index: int) -> InflightPart | None:
        """Return the part that a running queue has."""
        return self._parts[index]

    def end(self, index: int) -> None:
        """A queue has stopped."""
        self._parts.pop(index, None)

    def reset(self) -> None:
        """Forget the front-end."""
        self._area = None
        self._parts.clear()


def _bytes_for(*, packed: bool) -> Callable[[int], int]:
    from vhostblk.virtqueue.ring import inflight_bytes

    return inflight_bytes(packed=packed)

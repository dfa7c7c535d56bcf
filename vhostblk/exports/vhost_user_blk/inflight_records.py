# SPDX-License-Identifier: Apache-2.0
"""The shared memory of a front-end in which queues record their requests in flight.

The front-end may set another area at any time; a running queue keeps the part that it has.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vhostblk.virtqueue.inflight_area import InflightArea, make_inflight

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.virtqueue.config import InflightDescription, VringConfig
    from vhostblk.virtqueue.inflight_area import InflightPart
    from vhostblk.virtqueue.mapping import LossSignal


class InflightRecords:
    """The area that a front-end has set, if any."""

    def __init__(self, watch: Callable[[], LossSignal]) -> None:
        """`watch()` returns the signal to raise when shared memory gets lost."""
        self._watch = watch
        self._area: InflightArea | None = None

    def make(self, num_queues: int, queue_size: int) -> InflightDescription:
        """Create an area; the caller owns its descriptor."""
        # Front-ends may ask before they set features, so the area fits both kinds of rings.
        return make_inflight(num_queues, queue_size, _bytes_for(packed=True))

    def use(self, described: InflightDescription | None, *, packed: bool) -> None:
        """Set the area for queues that start from now on (None: no area); raises SetupError.

        This object owns the descriptor.
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
        """Return the part of the area for a queue that is about to start; None: no area."""
        if self._area is None:
            return None
        return self._area.part(config.index, _bytes_for(packed=config.packed))

    def reset(self) -> None:
        """Forget the front-end."""
        self._area = None


def _bytes_for(*, packed: bool) -> Callable[[int], int]:
    from vhostblk.virtqueue.ring import inflight_bytes

    return inflight_bytes(packed=packed)

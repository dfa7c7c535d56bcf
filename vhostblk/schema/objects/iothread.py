# SPDX-License-Identifier: Apache-2.0
"""Options of iothreads."""

from __future__ import annotations

from vhostblk.schema.errors import OptionError
from vhostblk.schema.object import ObjectOptions

INT64_MAX = 2**63 - 1


class IothreadProperties(ObjectOptions, tag="iothread", kw_only=True, frozen=True):
    """A thread that serves queues; times in nanoseconds."""

    aio_max_batch: int = 0
    thread_pool_min: int = 0
    thread_pool_max: int = 64
    poll_max_ns: int = 32768
    poll_grow: int = 0
    poll_shrink: int = 0

    def check(self) -> None:
        """Check the ranges of the values; raises OptionError."""
        for name in (
            "aio-max-batch",
            "thread-pool-min",
            "thread-pool-max",
            "poll-max-ns",
            "poll-grow",
            "poll-shrink",
        ):
            if getattr(self, name.replace("-", "_")) < 0:
                raise OptionError(f"{name} value must be in range [0, {INT64_MAX}]")
        if not max(self.thread_pool_min, 1) <= self.thread_pool_max:
            raise OptionError("bad thread-pool-min/thread-pool-max values")

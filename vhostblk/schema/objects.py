# SPDX-License-Identifier: Apache-2.0
"""User-creatable objects: `ObjectOptions` and its branches (`qapi/qom.json`)."""

from __future__ import annotations

from vhostblk.schema.errors import OptionError
from vhostblk.schema.object_base import ObjectOptionsBase
from vhostblk.schema.throttle import ThrottleGroupProperties

INT64_MAX = 2**63 - 1


class IothreadProperties(ObjectOptionsBase, tag="iothread", kw_only=True, frozen=True):
    """A thread that serves queues; times in nanoseconds."""

    aio_max_batch: int = 0
    thread_pool_min: int = 0
    thread_pool_max: int = 64
    poll_max_ns: int = 32768
    poll_grow: int = 0
    poll_shrink: int = 0


ObjectOptions = IothreadProperties | ThrottleGroupProperties


def check_iothread(options: IothreadProperties) -> None:
    """Refuse values outside of the properties' ranges."""
    for name in (
        "aio-max-batch",
        "thread-pool-min",
        "thread-pool-max",
        "poll-max-ns",
        "poll-grow",
        "poll-shrink",
    ):
        if getattr(options, name.replace("-", "_")) < 0:
            raise OptionError(f"{name} value must be in range [0, {INT64_MAX}]")
    if not max(options.thread_pool_min, 1) <= options.thread_pool_max:
        raise OptionError("bad thread-pool-min/thread-pool-max values")

# SPDX-License-Identifier: Apache-2.0
"""Options of `null-co` and `null-aio` (`qapi/block-core.json`)."""

from __future__ import annotations

from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.common import Uint64  # noqa: TC001 (read at run time)


class BlockdevOptionsNull(BlockdevOptions, tag="null-co", kw_only=True, frozen=True):
    """A disk without storage behind it; `latency_ns` delays each request."""

    size: int = 1 << 30
    latency_ns: Uint64 = 0
    read_zeroes: bool = False


class BlockdevOptionsNullAio(BlockdevOptionsNull, tag="null-aio", kw_only=True, frozen=True):
    """As `null-co`, completing from a callback of the event loop."""

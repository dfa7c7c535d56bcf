# SPDX-License-Identifier: Apache-2.0
"""Options of `null-co` and `null-aio` (`qapi/block-core.json`)."""

from __future__ import annotations

from msgspec import field

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.common import Size, Uint32, Uint64  # noqa: TC001 (read at run time)


class BlockdevNullZoned(QapiStruct, kw_only=True, frozen=True):
    """Zones of a host-managed disk; lengths are in bytes, and a limit of 0 is no limit."""

    zone_size: Size
    #: The writable part of each sequential zone; default: all of it.
    zone_capacity: Size | UnsetType = UNSET
    #: The number of conventional zones at the beginning.
    conventional_zones: Uint32 = 0
    max_open_zones: Uint32 = 0
    max_active_zones: Uint32 = 0
    #: Maximum length of an append; default: a zone's capacity.
    max_append_bytes: Size | UnsetType = UNSET
    write_granularity: Size = 512
    #: Numbers of the zones in these states.
    read_only_zones: list[Uint32] = field(default_factory=list)
    offline_zones: list[Uint32] = field(default_factory=list)


class BlockdevOptionsNull(BlockdevOptions, tag="null-co", kw_only=True, frozen=True):
    """A disk without storage; `latency_ns` delays each request."""

    size: int = 1 << 30
    latency_ns: Uint64 = 0
    read_zeroes: bool = False
    x_vhostblk_zoned: BlockdevNullZoned | UnsetType = UNSET


class BlockdevOptionsNullAio(BlockdevOptionsNull, tag="null-aio", kw_only=True, frozen=True):
    """As `null-co`, completing from a callback of the event loop."""

# SPDX-License-Identifier: Apache-2.0
"""The user's settings for one image: caches, overlap checks, discards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhostblk.block.errors import BlockError
from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.blockdev import BlockdevDiscardOptions
from vhostblk.schema.drivers.qcow2 import Qcow2OverlapCheckFlags, Qcow2OverlapCheckMode

if TYPE_CHECKING:
    from vhostblk.block.drivers.qcow2.header import Header
    from vhostblk.schema.drivers.qcow2 import BlockdevOptionsQcow2

#: Checks added by each mode; a mode includes those of the modes before it.
_CONSTANT = frozenset(
    {"main_header", "active_l1", "refcount_table", "snapshot_table", "bitmap_directory"}
)
_CACHED = _CONSTANT | {"active_l2", "refcount_block", "inactive_l1"}
_TEMPLATES = {
    Qcow2OverlapCheckMode.NONE: frozenset(),
    Qcow2OverlapCheckMode.CONSTANT: _CONSTANT,
    Qcow2OverlapCheckMode.CACHED: _CACHED,
    Qcow2OverlapCheckMode.ALL: _CACHED | {"inactive_l2"},
}

_L2_CACHE_MAX = 32 << 20
_MIN_L2_ENTRIES, _MIN_REFBLOCKS = 2, 4
_CLEAN_INTERVAL = 600
_UINT_MAX, _INT_MAX = 0xFFFF_FFFF, 0x7FFF_FFFF


@dataclass(frozen=True)
class Settings:
    """The options in force."""

    lazy_refcounts: bool
    #: Whether discards are passed to the file, by their cause.
    discard_request: bool
    discard_snapshot: bool
    discard_other: bool
    discard_no_unref: bool
    #: Member names of `Qcow2OverlapCheckFlags`.
    overlap: frozenset[str]
    #: Length of a slice in bytes, and the number of slices to keep.
    l2_slice_size: int
    l2_slices: int
    refblocks: int
    #: In seconds; 0: never.
    clean_interval: int


def settle(options: BlockdevOptionsQcow2, header: Header) -> Settings:
    """Compute the settings; raises BlockError."""
    slice_size, slices, refblocks = _cache_sizes(options, header)
    interval = _given(options.cache_clean_interval, _CLEAN_INTERVAL)
    if not 0 <= interval <= _UINT_MAX:
        raise BlockError("Cache clean interval too big")
    lazy = _flag(options.lazy_refcounts, header.lazy_refcounts)
    if lazy and header.version < 3:
        raise BlockError(
            "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level"
        )
    no_unref = _flag(options.discard_no_unref, False)
    if no_unref and header.version < 3:
        raise BlockError("discard-no-unref is only supported since qcow2 version 3")
    if options.encrypt is not UNSET and not header.crypt_method:
        tag = type(options.encrypt).__struct_config__.tag
        raise BlockError(f"No encryption in image header, but options specified format '{tag}'")
    return Settings(
        lazy_refcounts=lazy,
        discard_request=_flag(
            options.pass_discard_request, options.discard is BlockdevDiscardOptions.UNMAP
        ),
        discard_snapshot=_flag(options.pass_discard_snapshot, True),
        discard_other=_flag(options.pass_discard_other, False),
        discard_no_unref=no_unref,
        overlap=_overlap_checks(options),
        l2_slice_size=slice_size,
        l2_slices=slices,
        refblocks=refblocks,
        clean_interval=interval,
    )


def _flag(value: bool | UnsetType, default: bool) -> bool:
    return default if isinstance(value, UnsetType) else value


def _given(value: int | UnsetType, default: int) -> int:
    return default if isinstance(value, UnsetType) else value


def _overlap_checks(options: BlockdevOptionsQcow2) -> frozenset[str]:
    chosen = options.overlap_check
    if isinstance(chosen, UnsetType):
        return _CACHED
    if isinstance(chosen, Qcow2OverlapCheckMode):
        return _TEMPLATES[chosen]
    template = chosen.template
    names = _CACHED if isinstance(template, UnsetType) else _TEMPLATES[template]
    return frozenset(
        name
        for name in Qcow2OverlapCheckFlags.__struct_fields__
        if name != "template" and _flag(getattr(chosen, name), name in names)
    )


def _cache_sizes(options: BlockdevOptionsQcow2, header: Header) -> tuple[int, int, int]:
    """Return the slice size and the numbers of slices and refcount blocks to keep, as QEMU does."""
    geometry = header.geometry
    cluster = geometry.cluster_size
    for value in (options.cache_size, options.l2_cache_size, options.refcount_cache_size):
        if _given(value, 0) < 0:
            raise BlockError("L2 cache size too big")
    whole = geometry.clusters(geometry.clusters(header.size) << geometry.entry_bits) * cluster
    l2_max = _given(options.l2_cache_size, _L2_CACHE_MAX)
    l2_bytes = min(whole, l2_max)
    ref_bytes = _given(options.refcount_cache_size, 0)
    if not isinstance(options.cache_size, UnsetType):
        l2_bytes, ref_bytes = _share_cache(
            options, options.cache_size, whole, l2_bytes, ref_bytes, _MIN_REFBLOCKS * cluster
        )
    slice_size = _given(options.l2_cache_entry_size, cluster)
    if l2_bytes < whole and isinstance(options.l2_cache_entry_size, UnsetType):
        slice_size = min(cluster, 4096)
    if not (512 <= slice_size <= cluster) or slice_size & (slice_size - 1):
        raise BlockError(
            "L2 cache entry size must be a power of two between 512 and the cluster size "
            f"({cluster})"
        )
    slices = max(l2_bytes // slice_size, _MIN_L2_ENTRIES)
    refblocks = max(ref_bytes // cluster, _MIN_REFBLOCKS)
    if slices > _INT_MAX:
        raise BlockError("L2 cache size too big")
    if refblocks > _INT_MAX:
        raise BlockError("Refcount cache size too big")
    return slice_size, slices, refblocks


def _share_cache(
    options: BlockdevOptionsQcow2,
    total: int,
    whole: int,
    l2_bytes: int,
    ref_bytes: int,
    least: int,
) -> tuple[int, int]:
    """Divide `cache-size` between the two caches."""
    l2_given = options.l2_cache_size is not UNSET
    ref_given = options.refcount_cache_size is not UNSET
    if l2_given and ref_given:
        raise BlockError(
            "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time"
        )
    if _given(options.l2_cache_size, 0) > total:
        raise BlockError("l2-cache-size may not exceed cache-size")
    if ref_bytes > total:
        raise BlockError("refcount-cache-size may not exceed cache-size")
    if l2_given:
        return l2_bytes, total - l2_bytes
    if ref_given:
        return total - ref_bytes, ref_bytes
    least = min(total, least)
    if total >= whole + least:
        return whole, total - whole
    return total - least, least

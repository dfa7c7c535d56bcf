# SPDX-License-Identifier: Apache-2.0
"""Options of `qcow2` (`qapi/block-core.json`)."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from msgspec import Meta

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.blockdev import BlockdevOptions, BlockdevRef, BlockdevRefOrNull


class Qcow2OverlapCheckMode(Enum):
    """A set of `Qcow2OverlapCheckFlags`: metadata that writes must not overlap."""

    NONE = "none"
    CONSTANT = "constant"
    CACHED = "cached"
    ALL = "all"


class Qcow2OverlapCheckFlags(QapiStruct, kw_only=True, frozen=True):
    """Metadata that writes must not overlap; the template has the default of each flag."""

    template: Qcow2OverlapCheckMode | UnsetType = UNSET
    main_header: bool | UnsetType = UNSET
    active_l1: bool | UnsetType = UNSET
    active_l2: bool | UnsetType = UNSET
    refcount_table: bool | UnsetType = UNSET
    refcount_block: bool | UnsetType = UNSET
    snapshot_table: bool | UnsetType = UNSET
    inactive_l1: bool | UnsetType = UNSET
    inactive_l2: bool | UnsetType = UNSET
    bitmap_directory: bool | UnsetType = UNSET


Qcow2OverlapChecks = Annotated[
    Qcow2OverlapCheckMode | Qcow2OverlapCheckFlags, Meta(title="Qcow2OverlapChecks")
]


class BlockdevQcow2EncryptionAes(
    QapiStruct, tag_field="format", tag="aes", kw_only=True, frozen=True
):
    """The old AES-CBC encryption."""

    key_secret: str | UnsetType = UNSET


class BlockdevQcow2EncryptionLuks(
    QapiStruct, tag_field="format", tag="luks", kw_only=True, frozen=True
):
    """LUKS."""

    key_secret: str | UnsetType = UNSET


BlockdevQcow2Encryption = BlockdevQcow2EncryptionAes | BlockdevQcow2EncryptionLuks


class BlockdevOptionsQcow2(BlockdevOptions, tag="qcow2", kw_only=True, frozen=True):
    """A qcow2 image."""

    file: BlockdevRef
    backing: BlockdevRefOrNull | UnsetType = UNSET
    lazy_refcounts: bool | UnsetType = UNSET
    pass_discard_request: bool | UnsetType = UNSET
    pass_discard_snapshot: bool | UnsetType = UNSET
    pass_discard_other: bool | UnsetType = UNSET
    discard_no_unref: bool | UnsetType = UNSET
    overlap_check: Qcow2OverlapChecks | UnsetType = UNSET
    cache_size: int | UnsetType = UNSET
    l2_cache_size: int | UnsetType = UNSET
    l2_cache_entry_size: int | UnsetType = UNSET
    refcount_cache_size: int | UnsetType = UNSET
    cache_clean_interval: int | UnsetType = UNSET
    encrypt: BlockdevQcow2Encryption | UnsetType = UNSET
    data_file: BlockdevRef | UnsetType = UNSET

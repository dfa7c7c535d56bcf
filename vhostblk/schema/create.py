# SPDX-License-Identifier: Apache-2.0
"""Creating images: `blockdev-create` (`qapi/block-core.json`)."""

from __future__ import annotations

import functools
from enum import Enum
from typing import Any

import msgspec

from vhostblk.schema.base import UNSET, OpenUnion, QapiStruct, UnsetType
from vhostblk.schema.blockdev import BlockdevOptions, BlockdevRef
from vhostblk.schema.common import PreallocMode, Size
from vhostblk.schema.crypto import QCryptoBlockCreateOptions  # noqa: TC001 (read at run time)
from vhostblk.schema.driver_names import BlockdevDriver


class BlockdevQcow2Version(Enum):
    """Versions of the format."""

    V2 = "v2"
    V3 = "v3"


class Qcow2CompressionType(Enum):
    """What compressed clusters are compressed with."""

    ZLIB = "zlib"
    ZSTD = "zstd"


class BlockdevCreateOptions(OpenUnion, tag_field="driver", kw_only=True, frozen=True):
    """What is to be created, by driver; those that create nothing have no members."""

    @classmethod
    def find_branch(cls, tag: str) -> type[BlockdevCreateOptions] | None:
        """Return the options of a driver."""
        if tag in _CREATING:
            return _CREATING[tag]
        known = tag in _QEMU_DRIVERS or tag in BlockdevOptions.branch_names()
        return _without_members(tag) if known else None

    @classmethod
    def branch_names(cls) -> list[str]:
        """Return the names of all drivers."""
        return list(dict.fromkeys([*_QEMU_DRIVERS, *BlockdevOptions.branch_names()]))


class BlockdevCreateOptionsFile(BlockdevCreateOptions, tag="file", kw_only=True, frozen=True):
    """A regular file."""

    filename: str
    size: Size
    preallocation: PreallocMode = PreallocMode.OFF
    nocow: bool = False
    extent_size_hint: Size | UnsetType = UNSET


class BlockdevCreateOptionsQcow2(BlockdevCreateOptions, tag="qcow2", kw_only=True, frozen=True):
    """A qcow2 image."""

    file: BlockdevRef
    data_file: BlockdevRef | UnsetType = UNSET
    data_file_raw: bool = False
    extended_l2: bool = False
    size: Size
    version: BlockdevQcow2Version = BlockdevQcow2Version.V3
    backing_file: str | UnsetType = UNSET
    backing_fmt: BlockdevDriver | UnsetType = UNSET
    encrypt: QCryptoBlockCreateOptions | UnsetType = UNSET
    cluster_size: Size = 65536
    preallocation: PreallocMode = PreallocMode.OFF
    lazy_refcounts: bool = False
    refcount_bits: int = 16
    compression_type: Qcow2CompressionType = Qcow2CompressionType.ZLIB


class BlockdevCreate(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `blockdev-create`."""

    job_id: str
    options: BlockdevCreateOptions


_CREATING: dict[str, type[BlockdevCreateOptions]] = {
    "file": BlockdevCreateOptionsFile,
    "qcow2": BlockdevCreateOptionsQcow2,
}
_QEMU_DRIVERS = tuple(driver.value for driver in BlockdevDriver)


@functools.cache
def _without_members(tag: str) -> type[BlockdevCreateOptions]:
    made: Any = msgspec.defstruct(
        "BlockdevCreateOptionsNone",
        [],
        bases=(BlockdevCreateOptions,),
        tag=tag,
        kw_only=True,
        frozen=True,
    )
    branch: type[BlockdevCreateOptions] = made
    return branch

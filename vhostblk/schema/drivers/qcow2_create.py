# SPDX-License-Identifier: Apache-2.0
"""Options of `blockdev-create` for qcow2 images (`qapi/block-core.json`)."""

from __future__ import annotations

from enum import Enum

from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.blockdev import BlockdevRef  # noqa: TC001 (read at run time)
from vhostblk.schema.common import PreallocMode, Size
from vhostblk.schema.create import BlockdevCreateOptions
from vhostblk.schema.crypto import QCryptoBlockCreateOptions  # noqa: TC001 (read at run time)
from vhostblk.schema.driver_names import BlockdevDriver  # noqa: TC001 (read at run time)


class BlockdevQcow2Version(Enum):
    """Versions of the format."""

    V2 = "v2"
    V3 = "v3"


class Qcow2CompressionType(Enum):
    """The compression of clusters."""

    ZLIB = "zlib"
    ZSTD = "zstd"


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

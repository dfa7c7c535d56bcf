# SPDX-License-Identifier: Apache-2.0
"""Results of queries for qcow2 images, besides those for all images."""

from __future__ import annotations

from enum import Enum

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.common import Uint32  # noqa: TC001 (read at run time)


class Qcow2BitmapInfoFlags(Enum):
    """The flags of a bitmap in an image."""

    IN_USE = "in-use"
    AUTO = "auto"


class Qcow2BitmapInfo(QapiStruct, kw_only=True, frozen=True):
    """A bitmap that is stored in an image."""

    name: str
    granularity: Uint32
    flags: list[Qcow2BitmapInfoFlags]


class ImageInfoSpecificQCow2(QapiStruct, kw_only=True, frozen=True):
    """Information for qcow2 images; version 2 has only some of the members."""

    compat: str
    data_file: str | UnsetType = UNSET
    data_file_raw: bool | UnsetType = UNSET
    extended_l2: bool | UnsetType = UNSET
    lazy_refcounts: bool | UnsetType = UNSET
    corrupt: bool | UnsetType = UNSET
    refcount_bits: int
    bitmaps: list[Qcow2BitmapInfo] | UnsetType = UNSET
    compression_type: str

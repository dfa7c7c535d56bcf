# SPDX-License-Identifier: Apache-2.0
"""Details of an image for queries (`ImageInfo`, `ImageInfoSpecificQCow2`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vhostblk.block.drivers.qcow2.layout import COMPRESSION_ZSTD, Incompatible
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.filename import full_name
from vhostblk.schema.block_query import ImageInfoSpecific
from vhostblk.schema.drivers.qcow2_query import (
    ImageInfoSpecificQCow2,
    Qcow2BitmapInfo,
    Qcow2BitmapInfoFlags,
)

if TYPE_CHECKING:
    from vhostblk.block.drivers.qcow2.bitmaps import Bitmap
    from vhostblk.block.drivers.qcow2.image import Image


def describe(image: Image, filename: str) -> dict[str, Any]:
    """Return members of `ImageInfo`."""
    header, geometry = image.header, image.geometry
    members: dict[str, Any] = {
        "cluster_size": geometry.cluster_size,
        "dirty_flag": bool(header.incompatible & Incompatible.DIRTY),
        "format_specific": ImageInfoSpecific(type="qcow2", data=_specific(image)),
    }
    if image.snapshots.entries:
        members["snapshots"] = [each.describe() for each in image.snapshots.entries]
    if header.backing_file:
        name = header.backing_file.decode(errors="replace")
        members["backing_filename"] = name
        kind = None
        if header.backing_format is not None:
            kind = members["backing_filename_format"] = header.backing_format.decode(
                errors="replace"
            )
        try:
            members["full_backing_filename"] = full_name(name, filename, kind)
        except BlockError:
            pass  # there is none
    return members


def _specific(image: Image) -> ImageInfoSpecificQCow2:
    header, geometry = image.header, image.geometry
    compression = "zstd" if header.compression_type == COMPRESSION_ZSTD else "zlib"
    if header.version < 3:
        return ImageInfoSpecificQCow2(
            compat="0.10", refcount_bits=geometry.refcount_bits, compression_type=compression
        )
    members: dict[str, Any] = {}
    if image.bitmaps.entries:
        members["bitmaps"] = [_describe_bitmap(each) for each in image.bitmaps.entries]
    if geometry.external_data:
        members["data_file_raw"] = header.raw_data_file
        if header.data_file is not None:
            members["data_file"] = header.data_file.decode(errors="replace")
    return ImageInfoSpecificQCow2(
        compat="1.1",
        lazy_refcounts=header.lazy_refcounts,
        corrupt=bool(header.incompatible & Incompatible.CORRUPT),
        extended_l2=geometry.extended_l2,
        refcount_bits=geometry.refcount_bits,
        compression_type=compression,
        **members,
    )


def _describe_bitmap(bitmap: Bitmap) -> Qcow2BitmapInfo:
    flags = [Qcow2BitmapInfoFlags.IN_USE] if bitmap.in_use else []
    if bitmap.records:
        flags.append(Qcow2BitmapInfoFlags.AUTO)
    return Qcow2BitmapInfo(name=bitmap.text, granularity=1 << bitmap.granularity_bits, flags=flags)

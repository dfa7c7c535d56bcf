# SPDX-License-Identifier: Apache-2.0
"""What queries say of a file or a device, besides what they say of all nodes."""

from __future__ import annotations

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.block_query import BlockStatsSpecific
from vhostblk.schema.common import Uint64  # noqa: TC001 (read at run time)


class ImageInfoSpecificFile(QapiStruct, kw_only=True, frozen=True):
    """What is particular to files; `extent_size_hint` is XFS's."""

    extent_size_hint: int | UnsetType = UNSET


class BlockStatsSpecificFile(BlockStatsSpecific, tag="file", kw_only=True, frozen=True):
    """Discards that a file has seen."""

    discard_nb_ok: Uint64 = 0
    discard_nb_failed: Uint64 = 0
    discard_bytes_ok: Uint64 = 0


class BlockStatsSpecificHostDevice(
    BlockStatsSpecificFile, tag="host_device", kw_only=True, frozen=True
):
    """Discards that a device has seen."""

# SPDX-License-Identifier: Apache-2.0
"""Results of queries for files and devices, besides those for all nodes."""

from __future__ import annotations

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.block_query import BlockStatsSpecific
from vhostblk.schema.common import Uint64  # noqa: TC001 (read at run time)


class ImageInfoSpecificFile(QapiStruct, kw_only=True, frozen=True):
    """Information for files; `extent_size_hint` is XFS's."""

    extent_size_hint: int | UnsetType = UNSET


class BlockStatsSpecificFile(BlockStatsSpecific, tag="file", kw_only=True, frozen=True):
    """Statistics of discards of a file."""

    discard_nb_ok: Uint64 = 0
    discard_nb_failed: Uint64 = 0
    discard_bytes_ok: Uint64 = 0


class BlockStatsSpecificHostDevice(
    BlockStatsSpecificFile, tag="host_device", kw_only=True, frozen=True
):
    """Statistics of discards of a device."""

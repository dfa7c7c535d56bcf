# SPDX-License-Identifier: Apache-2.0
"""Options of `blockdev-create` for files (`qapi/block-core.json`)."""

from __future__ import annotations

from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.common import PreallocMode, Size
from vhostblk.schema.create import BlockdevCreateOptions


class BlockdevCreateOptionsFile(BlockdevCreateOptions, tag="file", kw_only=True, frozen=True):
    """A regular file."""

    filename: str
    size: Size
    preallocation: PreallocMode = PreallocMode.OFF
    nocow: bool = False
    extent_size_hint: Size | UnsetType = UNSET

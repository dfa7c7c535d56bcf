# SPDX-License-Identifier: Apache-2.0
"""Commands on dirty bitmaps (`qapi/block-core.json`)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.common import Uint32  # noqa: TC001 (read at run time)


class BlockDirtyBitmap(QapiStruct, kw_only=True, frozen=True):
    """A bitmap: arguments of the commands on one bitmap."""

    node: str
    name: str


class BlockDirtyBitmapAdd(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `block-dirty-bitmap-add`."""

    node: str
    name: str
    #: In bytes; the default is the cluster size, but at least 4 KiB and at most 64 KiB.
    granularity: Uint32 | UnsetType = UNSET
    persistent: bool | UnsetType = UNSET
    disabled: bool | UnsetType = UNSET


#: The name of a bitmap of the same node, or a bitmap of any node.
BlockDirtyBitmapOrStr = Annotated[str | BlockDirtyBitmap, Meta(title="BlockDirtyBitmapOrStr")]


class BlockDirtyBitmapMerge(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `block-dirty-bitmap-merge`."""

    node: str
    target: str
    bitmaps: list[BlockDirtyBitmapOrStr]


class BlockDirtyBitmapSha256(QapiStruct, kw_only=True, frozen=True):
    """A hash of a bitmap's content, in hexadecimal digits."""

    sha256: str

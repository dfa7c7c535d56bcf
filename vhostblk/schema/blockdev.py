# SPDX-License-Identifier: Apache-2.0
"""The definition of a block node: the options common to all drivers (`qapi/block-core.json`).

The options of each driver are in `schema.drivers`; its module is loaded when it is first named.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from msgspec import Meta

from vhostblk.schema import plugins
from vhostblk.schema.base import UNSET, OpenUnion, QapiStruct, UnsetType
from vhostblk.schema.branches import Branches, Parts
from vhostblk.schema.driver_manifest import DRIVERS


class BlockdevDiscardOptions(Enum):
    """The handling of discard requests."""

    IGNORE = "ignore"
    UNMAP = "unmap"


class BlockdevDetectZeroesOptions(Enum):
    """The handling of writes of zeroes."""

    OFF = "off"
    ON = "on"
    UNMAP = "unmap"


class BlockdevCacheOptions(QapiStruct, kw_only=True, frozen=True):
    """Cache modes of a node."""

    direct: bool | UnsetType = UNSET
    no_flush: bool | UnsetType = UNSET


class BlockdevOptions(OpenUnion, tag_field="driver", kw_only=True, frozen=True):
    """Members common to all drivers; each driver has a branch with its own.

    UNSET members depend on the parent; `block.graph.inherit` sets them before a driver opens.
    """

    node_name: str | UnsetType = UNSET
    discard: BlockdevDiscardOptions | UnsetType = UNSET
    cache: BlockdevCacheOptions = BlockdevCacheOptions()
    read_only: bool | UnsetType = UNSET
    auto_read_only: bool | UnsetType = UNSET
    force_share: bool | UnsetType = UNSET
    active: bool | UnsetType = UNSET
    detect_zeroes: BlockdevDetectZeroesOptions = BlockdevDetectZeroesOptions.OFF

    @classmethod
    def find_branch(cls, tag: str) -> type[BlockdevOptions] | None:
        """Return the options of a driver; raises OptionError for a plug-in that is broken."""
        found: type[BlockdevOptions] | None = _BRANCHES.find(tag)
        return found

    @classmethod
    def branch_names(cls) -> list[str]:
        """Return the names of all drivers, plug-ins included."""
        return _BRANCHES.names()


_BRANCHES = Branches(Parts(DRIVERS, "options"), plugins.DRIVERS, Parts(DRIVERS, "refusal"))

#: A node's name or the definition of a new node.
BlockdevRef = Annotated[str | BlockdevOptions, Meta(title="BlockdevRef")]
#: The same, or null: no node. An empty name also means no node.
BlockdevRefOrNull = Annotated[str | BlockdevOptions | None, Meta(title="BlockdevRefOrNull")]


#: Defaults for a node that is not defined inside another one.
CACHE_DEFAULTS = {"direct": False, "no_flush": False}
NODE_DEFAULTS = {
    "discard": BlockdevDiscardOptions.IGNORE,
    "read_only": False,
    "auto_read_only": False,
    "force_share": False,
    "active": True,
}

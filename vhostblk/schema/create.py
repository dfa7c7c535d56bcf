# SPDX-License-Identifier: Apache-2.0
"""Creating images: `blockdev-create` (`qapi/block-core.json`).

The options of each driver are in `schema.drivers`.
"""

from __future__ import annotations

from vhostblk.schema.base import OpenUnion, QapiStruct
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.branches import Branches, Parts, without_members
from vhostblk.schema.driver_manifest import DRIVERS


class BlockdevCreateOptions(OpenUnion, tag_field="driver", kw_only=True, frozen=True):
    """The options of a new image, by driver; drivers that can't create have no members."""

    @classmethod
    def find_branch(cls, tag: str) -> type[BlockdevCreateOptions] | None:
        """Return the options of a driver."""
        found: type[BlockdevCreateOptions] | None = _CREATING.find(tag)
        if found is None and (tag in DRIVERS or tag in BlockdevOptions.branch_names()):
            found = without_members(BlockdevCreateOptions, tag)
        return found

    @classmethod
    def branch_names(cls) -> list[str]:
        """Return the names of all drivers."""
        return list(dict.fromkeys([*DRIVERS, *BlockdevOptions.branch_names()]))


_CREATING = Branches(Parts(DRIVERS, "create_options"), None, {})


class BlockdevCreate(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `blockdev-create`."""

    job_id: str
    options: BlockdevCreateOptions

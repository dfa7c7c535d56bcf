# SPDX-License-Identifier: Apache-2.0
"""Changing the creation options of images (`x-blockdev-amend`), and checking images.

The options of each driver are in `schema.drivers`.
"""

from __future__ import annotations

from vhostblk.schema.base import UNSET, OpenUnion, QapiStruct, UnsetType
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.branches import Branches, Parts, without_members
from vhostblk.schema.driver_manifest import DRIVERS


class BlockdevAmendOptions(OpenUnion, tag_field="driver", kw_only=True, frozen=True):
    """The options to change, by driver; most have no members."""

    @classmethod
    def find_branch(cls, tag: str) -> type[BlockdevAmendOptions] | None:
        """Return the options of a driver."""
        found: type[BlockdevAmendOptions] | None = _AMENDING.find(tag)
        if found is None and tag in cls.branch_names():
            found = without_members(BlockdevAmendOptions, tag)
        return found

    @classmethod
    def branch_names(cls) -> list[str]:
        """Return the names of all drivers."""
        return list(dict.fromkeys([*DRIVERS, *BlockdevOptions.branch_names()]))


_AMENDING = Branches(Parts(DRIVERS, "amend_options"), None, {})


class BlockdevAmend(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `x-blockdev-amend`."""

    job_id: str
    node_name: str
    options: BlockdevAmendOptions
    force: bool | UnsetType = UNSET


class BlockdevCheck(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `x-vhostblk-blockdev-check`."""

    node_name: str
    #: Repair the errors.
    repair: bool = False


class ImageCheck(QapiStruct, kw_only=True, frozen=True):
    """The result of a check: the errors that remain, and those that were repaired."""

    filename: str
    format: str
    check_errors: int
    corruptions: int | UnsetType = UNSET
    leaks: int | UnsetType = UNSET
    corruptions_fixed: int | UnsetType = UNSET
    leaks_fixed: int | UnsetType = UNSET

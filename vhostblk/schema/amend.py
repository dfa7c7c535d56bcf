# SPDX-License-Identifier: Apache-2.0
"""Changing what an image was created with (`x-blockdev-amend`), and checking images."""

from __future__ import annotations

import functools
from enum import Enum
from typing import Any

import msgspec

from vhostblk.schema.base import UNSET, OpenUnion, QapiStruct, UnsetType
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.driver_names import BlockdevDriver


class QCryptoBlockLUKSKeyslotState(Enum):
    """Whether a key slot is to have a password."""

    ACTIVE = "active"
    INACTIVE = "inactive"


class QCryptoBlockAmendOptionsQCow(
    QapiStruct, tag_field="format", tag="qcow", kw_only=True, frozen=True
):
    """Of the old AES-CBC encryption nothing can be changed."""


class QCryptoBlockAmendOptionsLUKS(
    QapiStruct, tag_field="format", tag="luks", kw_only=True, frozen=True
):
    """A key slot of LUKS."""

    state: QCryptoBlockLUKSKeyslotState
    new_secret: str | UnsetType = UNSET
    old_secret: str | UnsetType = UNSET
    keyslot: int | UnsetType = UNSET
    iter_time: int | UnsetType = UNSET
    secret: str | UnsetType = UNSET


QCryptoBlockAmendOptions = QCryptoBlockAmendOptionsQCow | QCryptoBlockAmendOptionsLUKS


class BlockdevAmendOptions(OpenUnion, tag_field="driver", kw_only=True, frozen=True):
    """What is to be changed, by driver; most have no members."""

    @classmethod
    def find_branch(cls, tag: str) -> type[BlockdevAmendOptions] | None:
        """Return the options of a driver."""
        if tag == "qcow2":
            return BlockdevAmendOptionsQcow2
        if tag == "luks":
            return BlockdevAmendOptionsLUKS
        return _without_members(tag) if tag in cls.branch_names() else None

    @classmethod
    def branch_names(cls) -> list[str]:
        """Return the names of all drivers."""
        known = (driver.value for driver in BlockdevDriver)
        return list(dict.fromkeys([*known, *BlockdevOptions.branch_names()]))


class BlockdevAmendOptionsLUKS(BlockdevAmendOptions, tag="luks", kw_only=True, frozen=True):
    """A key slot of LUKS."""

    state: QCryptoBlockLUKSKeyslotState
    new_secret: str | UnsetType = UNSET
    old_secret: str | UnsetType = UNSET
    keyslot: int | UnsetType = UNSET
    iter_time: int | UnsetType = UNSET
    secret: str | UnsetType = UNSET


class BlockdevAmendOptionsQcow2(BlockdevAmendOptions, tag="qcow2", kw_only=True, frozen=True):
    """A qcow2 image."""

    encrypt: QCryptoBlockAmendOptions | UnsetType = UNSET


class BlockdevAmend(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `x-blockdev-amend`."""

    job_id: str
    node_name: str
    options: BlockdevAmendOptions
    force: bool | UnsetType = UNSET


@functools.cache
def _without_members(tag: str) -> type[BlockdevAmendOptions]:
    made: Any = msgspec.defstruct(
        "BlockdevAmendOptionsNone",
        [],
        bases=(BlockdevAmendOptions,),
        tag=tag,
        kw_only=True,
        frozen=True,
    )
    branch: type[BlockdevAmendOptions] = made
    return branch


class BlockdevCheck(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `x-vhostblk-blockdev-check`."""

    node_name: str
    #: Put right what is found.
    repair: bool = False


class ImageCheck(QapiStruct, kw_only=True, frozen=True):
    """What a check has found: what is left, and what was put right."""

    filename: str
    format: str
    check_errors: int
    corruptions: int | UnsetType = UNSET
    leaks: int | UnsetType = UNSET
    corruptions_fixed: int | UnsetType = UNSET
    leaks_fixed: int | UnsetType = UNSET

# SPDX-License-Identifier: Apache-2.0
"""`transaction`: several changes, all or none (`qapi/transaction.json`)."""

from __future__ import annotations

import functools
from enum import Enum
from typing import TYPE_CHECKING, Any

import msgspec

from vhostblk.schema.base import UNSET, OpenUnion, QapiStruct, UnsetType
from vhostblk.schema.bitmap import BlockDirtyBitmap, BlockDirtyBitmapAdd, BlockDirtyBitmapMerge
from vhostblk.schema.snapshot import (
    BlockdevSnapshot,
    BlockdevSnapshotInternal,
    BlockdevSnapshotSync,
)


class ActionCompletionMode(Enum):
    """The handling of a transaction's jobs when one of them fails."""

    INDIVIDUAL = "individual"
    GROUPED = "grouped"


class TransactionProperties(QapiStruct, kw_only=True, frozen=True):
    """Properties of a transaction."""

    completion_mode: ActionCompletionMode = ActionCompletionMode.INDIVIDUAL


class Abort(QapiStruct, kw_only=True, frozen=True):
    """An action that always fails, for tests."""


class TransactionAction(OpenUnion, tag_field="type", kw_only=True, frozen=True):
    """One action; the member `data` has its arguments."""

    if TYPE_CHECKING:
        data: Any

    @classmethod
    def find_branch(cls, tag: str) -> type[TransactionAction] | None:
        """Return the struct of a kind of action."""
        return _branch(tag) if tag in _ARGUMENTS else None

    @classmethod
    def branch_names(cls) -> list[str]:
        """Return the names of all kinds of actions."""
        return list(_ARGUMENTS)


_ARGUMENTS: dict[str, type[QapiStruct]] = {
    "abort": Abort,
    "block-dirty-bitmap-add": BlockDirtyBitmapAdd,
    "block-dirty-bitmap-remove": BlockDirtyBitmap,
    "block-dirty-bitmap-clear": BlockDirtyBitmap,
    "block-dirty-bitmap-enable": BlockDirtyBitmap,
    "block-dirty-bitmap-disable": BlockDirtyBitmap,
    "block-dirty-bitmap-merge": BlockDirtyBitmapMerge,
    "blockdev-snapshot": BlockdevSnapshot,
    "blockdev-snapshot-internal-sync": BlockdevSnapshotInternal,
    "blockdev-snapshot-sync": BlockdevSnapshotSync,
}


@functools.cache
def _branch(name: str) -> type[TransactionAction]:
    made: Any = msgspec.defstruct(
        "TransactionActionBranch",
        [("data", _ARGUMENTS[name])],
        bases=(TransactionAction,),
        tag=name,
        kw_only=True,
        frozen=True,
    )
    branch: type[TransactionAction] = made
    return branch


class Transaction(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `transaction`."""

    actions: list[TransactionAction]
    properties: TransactionProperties | UnsetType = UNSET

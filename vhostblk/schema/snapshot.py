# SPDX-License-Identifier: Apache-2.0
"""Commands on snapshots (`qapi/block-core.json`)."""

from __future__ import annotations

from enum import Enum

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType


class NewImageMode(Enum):
    """Whether the file of a snapshot is created."""

    EXISTING = "existing"
    ABSOLUTE_PATHS = "absolute-paths"


class BlockdevSnapshot(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `blockdev-snapshot`."""

    node: str
    overlay: str


class BlockdevSnapshotSync(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `blockdev-snapshot-sync`."""

    device: str | UnsetType = UNSET
    node_name: str | UnsetType = UNSET
    snapshot_file: str
    snapshot_node_name: str | UnsetType = UNSET
    format: str | UnsetType = UNSET
    mode: NewImageMode = NewImageMode.ABSOLUTE_PATHS


class ChangeBackingFile(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `change-backing-file`."""

    device: str
    image_node_name: str
    backing_file: str


class BlockdevSnapshotInternal(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `blockdev-snapshot-internal-sync`."""

    device: str
    name: str


class BlockdevSnapshotDeleteInternal(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `blockdev-snapshot-delete-internal-sync`."""

    device: str
    id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET


class SnapshotInfo(QapiStruct, kw_only=True, frozen=True):
    """An internal snapshot."""

    id: str
    name: str
    vm_state_size: int
    date_sec: int
    date_nsec: int
    vm_clock_sec: int
    vm_clock_nsec: int
    icount: int | UnsetType = UNSET

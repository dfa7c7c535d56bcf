# SPDX-License-Identifier: Apache-2.0
"""Commands on internal snapshots (`qapi/block-core.json`)."""

from __future__ import annotations

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType


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

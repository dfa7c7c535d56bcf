# SPDX-License-Identifier: Apache-2.0
"""Commands on block nodes, and their events (`qapi/block-core.json`)."""

from __future__ import annotations

from enum import Enum

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.blockdev import BlockdevOptions  # noqa: TC001 (read at run time)
from vhostblk.schema.common import Uint64  # noqa: TC001 (read at run time)


class BlockdevReopen(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `blockdev-reopen`."""

    options: list[BlockdevOptions]


class BlockdevDel(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `blockdev-del`."""

    node_name: str


class BlockdevSetActive(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `blockdev-set-active`."""

    #: The default is all nodes.
    node_name: str | UnsetType = UNSET
    active: bool


class BlockResize(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `block_resize`."""

    device: str | UnsetType = UNSET
    node_name: str | UnsetType = UNSET
    size: int


class BlockSetWriteThreshold(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `block-set-write-threshold`."""

    node_name: str
    #: An offset in bytes; 0: no threshold.
    write_threshold: Uint64


class BlockdevChange(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `x-blockdev-change`."""

    parent: str
    child: str | UnsetType = UNSET
    node: str | UnsetType = UNSET


class BlockWriteThreshold(QapiStruct, kw_only=True, frozen=True):
    """Data of the event `BLOCK_WRITE_THRESHOLD`."""

    node_name: str
    amount_exceeded: Uint64
    write_threshold: Uint64


class BlockImageCorrupted(QapiStruct, kw_only=True, frozen=True):
    """Data of the event `BLOCK_IMAGE_CORRUPTED`."""

    device: str
    node_name: str | UnsetType = UNSET
    msg: str
    offset: int | UnsetType = UNSET
    size: int | UnsetType = UNSET
    fatal: bool


class IoOperationType(Enum):
    """The kind of a request."""

    READ = "read"
    WRITE = "write"


class BlockErrorAction(Enum):
    """The reaction to a failed request."""

    IGNORE = "ignore"
    REPORT = "report"
    STOP = "stop"


class BlockIoError(QapiStruct, kw_only=True, frozen=True):
    """Data of the event `BLOCK_IO_ERROR`."""

    qom_path: str
    device: str
    node_name: str | UnsetType = UNSET
    operation: IoOperationType
    action: BlockErrorAction
    nospace: bool | UnsetType = UNSET
    reason: str

# SPDX-License-Identifier: Apache-2.0
"""Exports: `BlockExportOptions`, commands and answers (`qapi/block-export.json`).

The options of each export type are in `schema.exports`; its module is loaded when it is first
named.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from vhostblk.schema import plugins
from vhostblk.schema.base import UNSET, OpenUnion, QapiStruct, UnsetType
from vhostblk.schema.branches import Branches, Parts


class BlockExportOptions(OpenUnion, tag_field="type", kw_only=True, frozen=True):
    """Members common to all export types."""

    id: str
    fixed_iothread: bool = False
    iothread: str | UnsetType = UNSET
    node_name: str
    writable: bool = False
    #: Flush after every write, even if the guest does not ask for it.
    writethrough: bool = False
    #: Leave an inactive node inactive.
    allow_inactive: bool = False

    @classmethod
    def find_branch(cls, tag: str) -> type[BlockExportOptions] | None:
        """Return the options of an export type; raises OptionError for a plug-in that is broken."""
        found: type[BlockExportOptions] | None = _BRANCHES.find(tag)
        return found

    @classmethod
    def branch_names(cls) -> list[str]:
        """Return the names of all export types, plug-ins included."""
        return _BRANCHES.names()

    def iothread_names(self) -> list[str]:
        """Return the names of the export's iothreads, in the order in which queues use them."""
        return [] if self.iothread is UNSET else [self.iothread]

    def shares_writing(self) -> bool:
        """Return whether other users and processes may write the image at the same time."""
        return False


class ExportType(NamedTuple):
    """The parts of an export type, `module:name`, which are imported when they are first used."""

    #: A subclass of `BlockExportOptions`.
    options: str = ""
    #: A subclass of `exports.base.Export`.
    export: str = ""
    #: Why the type is refused; it has no parts then.
    refusal: str = ""


#: The table of export types. Those of other packages are found by `schema.plugins`.
EXPORT_TYPES: dict[str, ExportType] = {
    "nbd": ExportType(refusal="Export type 'nbd' is not available in vhostblk yet"),
    "vhost-user-blk": ExportType(
        "vhostblk.schema.exports.vhost_user_blk:BlockExportOptionsVhostUserBlk",
        "vhostblk.exports.vhost_user_blk.export:VhostUserBlkExport",
    ),
    "fuse": ExportType(refusal="Export type 'fuse' is not available in vhostblk yet"),
    "vduse-blk": ExportType(refusal="Export type 'vduse-blk' is not available in vhostblk yet"),
}

_BRANCHES = Branches(
    Parts(EXPORT_TYPES, "options"), plugins.EXPORTS, Parts(EXPORT_TYPES, "refusal")
)


# Commands, answers and events.


class BlockExportRemoveMode(Enum):
    """The handling of clients when their export is removed."""

    #: Refuse the removal while there are clients.
    SAFE = "safe"
    #: Disconnect clients.
    HARD = "hard"


class BlockExportDel(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `block-export-del`."""

    id: str
    mode: BlockExportRemoveMode = BlockExportRemoveMode.SAFE


class BlockExportInfo(QapiStruct, kw_only=True, frozen=True):
    """One export in the answer of `query-block-exports`."""

    id: str
    type: str
    node_name: str
    shutting_down: bool


class BlockExportDeleted(QapiStruct, kw_only=True, frozen=True):
    """Data of the event `BLOCK_EXPORT_DELETED`."""

    id: str


class QueryExportStats(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `x-vhostblk-query-export-stats`."""

    #: Only this export.
    id: str | UnsetType = UNSET


class RequestStats(QapiStruct, kw_only=True, frozen=True):
    """Statistics of one queue and one kind of request."""

    operations: int
    bytes: int
    failed: int
    total_ns: int
    #: Requests that were merged with the previous one.
    merged: int
    #: Requests by duration: the n-th took at least 2**n ns and less than 2**(n+1).
    latency: list[int]


class QueueStats(QapiStruct, kw_only=True, frozen=True):
    """Statistics of one queue since its export started."""

    index: int
    read: RequestStats
    write: RequestStats
    flush: RequestStats
    #: Discards and write-zeroes.
    unmap: RequestStats
    #: Invalid requests, which were refused.
    invalid: int
    #: Requests that the express lane has passed to the Python lane.
    upcalls: int
    #: Polls of the available ring that found something.
    sweeps: int
    #: Interrupts sent.
    notified: int
    #: Kicks received.
    kicks: int


class ExportStats(QapiStruct, kw_only=True, frozen=True):
    """One export in the answer of `x-vhostblk-query-export-stats`."""

    id: str
    node_name: str
    #: Clients connected now.
    clients: int
    queues: list[QueueStats]

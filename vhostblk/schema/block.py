# SPDX-License-Identifier: Apache-2.0
"""Block nodes: `BlockdevOptions` and its branches (`qapi/block-core.json`)."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from msgspec import Meta

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.common import OnOffAuto, Uint64


class BlockdevDiscardOptions(Enum):
    """What becomes of discard requests."""

    IGNORE = "ignore"
    UNMAP = "unmap"


class BlockdevDetectZeroesOptions(Enum):
    """Whether writes of zeroes are turned into write-zeroes requests."""

    OFF = "off"
    ON = "on"
    UNMAP = "unmap"


class BlockdevAioOptions(Enum):
    """Which asynchronous I/O interface is used."""

    THREADS = "threads"
    NATIVE = "native"
    IO_URING = "io_uring"


class BlockdevCacheOptions(QapiStruct, kw_only=True, frozen=True):
    """Cache modes of a node."""

    direct: bool | UnsetType = UNSET
    no_flush: bool | UnsetType = UNSET


class BlockdevOptionsBase(QapiStruct, tag_field="driver", kw_only=True, frozen=True):
    """Members common to all drivers.

    UNSET ones depend on where the node is defined; `block.inherit` sets them before a driver opens.
    """

    node_name: str | UnsetType = UNSET
    discard: BlockdevDiscardOptions | UnsetType = UNSET
    cache: BlockdevCacheOptions = BlockdevCacheOptions()
    read_only: bool | UnsetType = UNSET
    auto_read_only: bool | UnsetType = UNSET
    force_share: bool | UnsetType = UNSET
    active: bool | UnsetType = UNSET
    detect_zeroes: BlockdevDetectZeroesOptions = BlockdevDetectZeroesOptions.OFF


#: What is not set for a node that is not defined inside another.
CACHE_DEFAULTS = {"direct": False, "no_flush": False}
NODE_DEFAULTS = {
    "discard": BlockdevDiscardOptions.IGNORE,
    "read_only": False,
    "auto_read_only": False,
    "force_share": False,
    "active": True,
}


class BlockdevOptionsFile(BlockdevOptionsBase, tag="file", kw_only=True, frozen=True):
    """A regular file; the members of `host_device` too."""

    filename: str
    locking: OnOffAuto = OnOffAuto.AUTO
    aio: BlockdevAioOptions | UnsetType = UNSET
    aio_max_batch: int = 0
    drop_cache: bool = True
    x_check_cache_dropped: bool = False


class BlockdevOptionsHostDevice(BlockdevOptionsFile, tag="host_device", kw_only=True, frozen=True):
    """A block device of the host."""


class BlockdevOptionsNull(BlockdevOptionsBase, tag="null-co", kw_only=True, frozen=True):
    """A disk without storage behind it; `latency_ns` delays each request."""

    size: int = 1 << 30
    latency_ns: Uint64 = 0
    read_zeroes: bool = False


class BlockdevOptionsNullAio(BlockdevOptionsNull, tag="null-aio", kw_only=True, frozen=True):
    """As `null-co`, completing from a callback of the event loop."""


class BlockdevOptionsRaw(BlockdevOptionsBase, tag="raw", kw_only=True, frozen=True):
    """A window of another node's bytes."""

    #: A node's name or an inline definition.
    file: BlockdevRef
    offset: int = 0
    size: int | UnsetType = UNSET


BlockdevOptions = (
    BlockdevOptionsFile
    | BlockdevOptionsHostDevice
    | BlockdevOptionsNull
    | BlockdevOptionsNullAio
    | BlockdevOptionsRaw
)

#: A node's name or the definition of a new node.
BlockdevRef = Annotated[str | BlockdevOptions, Meta(title="BlockdevRef")]


# Commands on nodes.


class BlockdevReopen(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `blockdev-reopen`."""

    options: list[BlockdevOptions]


class BlockdevDel(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `blockdev-del`."""

    node_name: str


class BlockdevSetActive(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `blockdev-set-active`."""

    #: All nodes, if left out.
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
    #: An offset in bytes; 0: none.
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


class IoOperationType(Enum):
    """What a request does."""

    READ = "read"
    WRITE = "write"


class BlockErrorAction(Enum):
    """What is done about a failed request."""

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

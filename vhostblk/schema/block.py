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

    direct: bool = False
    no_flush: bool = False


class BlockdevOptionsBase(QapiStruct, tag_field="driver", kw_only=True, frozen=True):
    """Members common to all drivers."""

    node_name: str | UnsetType = UNSET
    discard: BlockdevDiscardOptions = BlockdevDiscardOptions.IGNORE
    cache: BlockdevCacheOptions = BlockdevCacheOptions()
    read_only: bool = False
    auto_read_only: bool = False
    force_share: bool = False
    detect_zeroes: BlockdevDetectZeroesOptions = BlockdevDetectZeroesOptions.OFF


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

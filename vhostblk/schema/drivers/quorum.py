# SPDX-License-Identifier: Apache-2.0
"""Options and events of `quorum` (`qapi/block-core.json`)."""

from __future__ import annotations

from enum import Enum

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.blockdev import BlockdevOptions, BlockdevRef


class QuorumReadPattern(Enum):
    """The children that are read."""

    #: All children; the majority decides.
    QUORUM = "quorum"
    #: The first child, and the next one if that fails.
    FIFO = "fifo"


class BlockdevOptionsQuorum(BlockdevOptions, tag="quorum", kw_only=True, frozen=True):
    """Several copies of one disk."""

    blkverify: bool = False
    children: list[BlockdevRef]
    vote_threshold: int
    rewrite_corrupted: bool = False
    read_pattern: QuorumReadPattern = QuorumReadPattern.QUORUM


class QuorumOpType(Enum):
    """The operation that failed on a child."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"


class QuorumFailure(QapiStruct, kw_only=True, frozen=True):
    """Data of the event `QUORUM_FAILURE`: too few children agree."""

    #: The quorum's name.
    reference: str
    sector_num: int
    sectors_count: int


class QuorumReportBad(QapiStruct, kw_only=True, frozen=True):
    """Data of the event `QUORUM_REPORT_BAD`: a child failed, or differs from the majority."""

    type: QuorumOpType
    #: UNSET: the child's data differed from the majority's.
    error: str | UnsetType = UNSET
    node_name: str
    sector_num: int
    sectors_count: int

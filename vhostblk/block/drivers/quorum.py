# SPDX-License-Identifier: Apache-2.0
"""`quorum`: several copies of one disk, with votes on the data and on errors.

A request succeeds if at least `vote-threshold` children agree. Children that fail, or disagree with
the majority, are reported with QUORUM_REPORT_BAD. QUORUM_FAILURE reports that there is no majority.
If several versions have the same number of votes, the one that was seen last wins.

Children can be added and removed at run time (`x-blockdev-change`). Their roles are `children.N`.
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Self

from vhostblk.block import SECTOR
from vhostblk.block.drivers.blkverify import first_difference
from vhostblk.block.drivers.quorum_vote import Versions
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.members import ChangesChildren
from vhostblk.block.graph.node import BlockLimits, BlockNode, BlockStatus, Extent
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io import shaping
from vhostblk.block.io.completion import outcomes
from vhostblk.block.io.flags import WriteFlags
from vhostblk.errors import os_error, reason
from vhostblk.fatal import end_process
from vhostblk.schema.base import UNSET
from vhostblk.schema.drivers.quorum import (
    QuorumFailure,
    QuorumOpType,
    QuorumReadPattern,
    QuorumReportBad,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.events import EventBus


class QuorumNode(BlockNode, ChangesChildren):
    """A disk with several copies."""

    driver = "quorum"
    primary_role = ""

    def __init__(self, node_name: str, options: Any, events: EventBus) -> None:
        super().__init__(node_name, options)
        self.read_only = options.read_only
        self._events = events
        self._members: list[Edge] = []
        self._next_index = 0
        self._size = self._former_size = 0
        voting = options.read_pattern is QuorumReadPattern.QUORUM
        self._threshold: int = options.vote_threshold
        self._voting = voting
        self._verifies: bool = voting and options.blkverify
        self._rewrites: bool = voting and options.rewrite_corrupted

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        node = cls(node_name, options, graph.events)
        node._check_options()
        for ref in options.children:
            role = f"children.{node._next_index}"
            await graph.open_child(node, role, ref)
            node.child_added(role)
        node.refresh_image()
        return node

    def _check_options(self) -> None:
        count = len(self.options.children)
        if count < 1:
            raise BlockError("Number of provided children must be 1 or more")
        if self._threshold < 1:
            raise BlockError("Parameter 'vote-threshold' expects a value >= 1")
        if self._threshold > count:
            raise BlockError("threshold may not exceed children count")
        if self._verifies and (count, self._threshold) != (2, 2):
            raise BlockError(
                "blkverify=on can only be set if there are exactly two files and "
                "vote-threshold is 2"
            )
        if self._verifies and self._rewrites:
            raise BlockError("rewrite-corrupted=on cannot be used with blkverify=on")

    # Children.

    def new_role(self) -> str:
        if self._verifies:
            raise BlockError("Cannot add a child to a quorum in blkverify mode")
        return f"children.{self._next_index}"

    def child_added(self, role: str) -> None:
        self._next_index += 1
        self._members = list(self.children.values())
        self.refresh_limits()

    def check_loss(self, role: str) -> None:
        if len(self.children) <= self._threshold:
            raise BlockError(
                f"The number of children cannot be lower than the vote threshold {self._threshold}"
            )

    def child_removed(self, role: str) -> None:
        if role == f"children.{self._next_index - 1}":
            self._next_index -= 1  # as in QEMU, only the last number is reused
        self._members = list(self.children.values())
        self.refresh_limits()

    def child_permissions(self, role: str, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        """Share no permission to write or resize a child."""
        if self._rewrites:
            perm |= Perm.WRITE
        return perm, shared & (Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED)

    def refresh_limits(self) -> None:
        below = [edge.node for edge in self._members]
        # A vote takes memory for each child.
        self.limits = BlockLimits(
            max_transfer=shaping.BOUNCE_BYTES,
            discard_granularity=max(node.limits.discard_granularity for node in below),
        )
        self.native_flags = WriteFlags.MAY_UNMAP | WriteFlags.NO_FALLBACK
        for node in below:
            self.native_flags &= node.native_flags

    def check_children(self) -> None:
        if len({edge.node.size for edge in self._members}) > 1:
            raise BlockError(f"Could not refresh total sector count: {reason(errno.EIO)}")

    def refresh_image(self) -> None:
        self.check_children()
        self._size = self._members[0].node.size

    async def load_other_data(self, roles: AbstractSet[str]) -> None:
        self._former_size = self._size
        self.refresh_image()

    def drop_other_data(self) -> None:
        self._size = self._former_size

    @property
    def size(self) -> int:
        return self._size

    @property
    def grows_by_writing(self) -> bool:
        return True  # each child decides on its own, and the results are voted on

    def written_past_end(self, size: int) -> None:
        self._size = max(self._size, size)

    @property
    def exact_size(self) -> int:
        return min(self._size, *(edge.node.exact_size for edge in self._members))

    @property
    def allocated_size(self) -> int | None:
        sizes = [edge.node.allocated_size for edge in self._members]
        return sum(size for size in sizes if size is not None) if None not in sizes else None

    @property
    def strong_options(self) -> dict[str, Any]:
        options = self.options
        given: dict[str, Any] = {"vote-threshold": options.vote_threshold}
        if options.blkverify:
            given["blkverify"] = True
        if options.rewrite_corrupted:
            given["rewrite-corrupted"] = True
        if options.read_pattern is not QuorumReadPattern.QUORUM:
            given["read-pattern"] = options.read_pattern.value
        return given

    # Reading.

    async def preadv(self, offset: int, iov: IoVec) -> None:
        if self._voting:
            await self._read_from_all(offset, iov)
        else:
            await self._read_from_first(offset, iov)

    async def _read_from_first(self, offset: int, iov: IoVec) -> None:
        last: OSError | None = None
        for member in self._members:
            try:
                await member.preadv(offset, iov)
            except OSError as error:
                self._report_bad(QuorumOpType.READ, member, offset, iov.nbytes, error)
                last = error
            else:
                return
        assert last is not None
        raise last

    async def _read_from_all(self, offset: int, iov: IoVec) -> None:
        members = self._members
        buffers = [
            shaping.allocate(iov.nbytes, member.node.limits.memory_alignment) for member in members
        ]
        errors = await outcomes(
            [member.preadv(offset, read) for member, read in zip(members, buffers, strict=True)]
        )
        self._check_errors(QuorumOpType.READ, offset, iov.nbytes, errors)
        versions: Versions[bytes] = Versions()
        for index, (read, error) in enumerate(zip(buffers, errors, strict=True)):
            if error is None:
                versions.add(read.to_bytes(), index)
        winner = versions.winner
        if len(versions) > 1:
            if self._verifies:
                _end_verification(offset, versions)
            if versions.votes(winner) < self._threshold:
                self._report_failure(offset, iov.nbytes)
                raise os_error(errno.EIO)
        iov.copy_from(winner)
        await self._correct(offset, buffers[versions.voters(winner)[0]], versions)

    async def _correct(self, offset: int, right: IoVec, versions: Versions[bytes]) -> None:
        """Report the outvoted children, and rewrite their data if configured."""
        outvoted = [self._members[index] for index in versions.outvoted()]
        for member in outvoted:
            self._report_bad(QuorumOpType.READ, member, offset, right.nbytes)
        if self._rewrites and outvoted:
            # Errors are ignored: the data is bad already.
            await outcomes([member.pwritev(offset, right) for member in outvoted])

    # Writing.

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        errors = await outcomes([member.pwritev(offset, iov, flags) for member in self._members])
        self._check_errors(QuorumOpType.WRITE, offset, iov.nbytes, errors)

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        errors = await outcomes(
            [member.pwrite_zeroes(offset, length, flags) for member in self._members]
        )
        self._check_errors(QuorumOpType.WRITE, offset, length, errors)

    async def reserve(self, offset: int, length: int) -> None:
        errors = await outcomes([member.reserve(offset, length) for member in self._members])
        if errors.count(None) < self._threshold:
            raise os_error(_vote_on_errors(errors))

    async def flush(self) -> None:
        errors: list[OSError | None] = []
        for member in self._members:
            try:
                await member.flush()
                errors.append(None)
            except OSError as error:
                self._report_bad(QuorumOpType.FLUSH, member, 0, 0, error)
                errors.append(error)
        if errors.count(None) < self._threshold:
            raise os_error(_vote_on_errors(errors))

    async def block_status(self, offset: int, length: int) -> Extent:
        """Return zero status if all children agree on it."""
        zeroes, data = length, 0
        for member in self._members:
            try:
                extent = await member.block_status(offset, length)
            except OSError as error:
                self._report_bad(QuorumOpType.READ, member, offset, length, error)
                data = length
                break
            if extent.status & BlockStatus.ZERO:
                zeroes = min(zeroes, extent.length)
            else:
                data = max(data, extent.length)
        status = BlockStatus.ALLOCATED | (BlockStatus.DATA if data else BlockStatus.ZERO)
        run = data or zeroes
        return Extent(run, status | (BlockStatus.EOF if offset + run == self.size else 0))

    # Errors.

    def _check_errors(
        self, kind: QuorumOpType, offset: int, length: int, errors: Sequence[OSError | None]
    ) -> None:
        """Report failed children; raise OSError if too few have succeeded."""
        for member, error in zip(self._members, errors, strict=True):
            if error is not None:
                self._report_bad(kind, member, offset, length, error)
        if errors.count(None) < self._threshold:
            self._report_failure(offset, length)
            raise os_error(_vote_on_errors(errors))

    def _report_bad(
        self,
        kind: QuorumOpType,
        member: Edge,
        offset: int,
        length: int,
        error: OSError | None = None,
    ) -> None:
        sector, count = _sectors(offset, length)
        self._events.emit(
            "QUORUM_REPORT_BAD",
            QuorumReportBad(
                type=kind,
                error=UNSET if error is None else reason(error.errno or 0),
                node_name=member.node.node_name,
                sector_num=sector,
                sectors_count=count,
            ),
        )

    def _report_failure(self, offset: int, length: int) -> None:
        sector, count = _sectors(offset, length)
        self._events.emit(
            "QUORUM_FAILURE",
            QuorumFailure(reference=self.node_name, sector_num=sector, sectors_count=count),
        )


def _sectors(offset: int, length: int) -> tuple[int, int]:
    start = offset // SECTOR
    return start, -(-(offset + length) // SECTOR) - start


def _vote_on_errors(errors: Sequence[OSError | None]) -> int:
    """Return the errno that most children failed with."""
    versions: Versions[int] = Versions()
    for index, error in enumerate(errors):
        if error is not None:
            versions.add(error.errno or errno.EIO, index)
    return versions.winner


def _end_verification(offset: int, versions: Versions[bytes]) -> None:
    one, other = versions
    at = first_difference(one, other)
    end_process(
        f"quorum: offset={offset} bytes={len(one)} contents mismatch at offset {offset + (at or 0)}"
    )

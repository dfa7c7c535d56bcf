# SPDX-License-Identifier: Apache-2.0
"""Drivers for tests of filters: an image that lies on another one, and a format that grows."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from vhostblk.block.graph.node import BlockLimits, BlockNode, BlockStatus, Extent
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.flags import WriteFlags
from vhostblk.schema import driver_manifest
from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.blockdev import BlockdevOptions, BlockdevRef

if TYPE_CHECKING:
    import pytest

    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.io.iovec import IoVec

CLUSTER = 4096


class CowOptions(BlockdevOptions, tag="test-cow", kw_only=True, frozen=True):
    """Options of `CowNode`."""

    size: int = 1 << 20
    backing: BlockdevRef | UnsetType = UNSET
    cluster_size: int = CLUSTER


class GrowOptions(BlockdevOptions, tag="test-grow", kw_only=True, frozen=True):
    """Options of `GrowNode`."""

    file: BlockdevRef


class CowNode(BlockNode):
    """Clusters in memory, the others in the child "backing", or zeroes.

    Each step of a request suspends, so that what is not kept apart goes wrong.
    """

    driver = "test-cow"
    reopens = True
    exchangeable_roles = frozenset({"backing"})

    def __init__(self, node_name: str, options: CowOptions) -> None:
        super().__init__(node_name, options)
        self.read_only = bool(options.read_only)
        self.native_flags = WriteFlags.WRITE_UNCHANGED | WriteFlags.WRITE_COMPRESSED
        self.clusters: dict[int, bytes] = {}
        #: (offset, length, flags) of each write.
        self.writes: list[tuple[int, int, WriteFlags]] = []

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        node = cls(node_name, options)
        if options.backing is not UNSET:
            await graph.open_child(node, "backing", options.backing)
        return node

    @property
    def size(self) -> int:
        size: int = self.options.size
        return size

    @property
    def cluster_size(self) -> int:
        size: int = self.options.cluster_size
        return size

    def child_permissions(self, role: str, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        return perm & Perm.CONSISTENT_READ, Perm.ALL

    async def _cluster(self, number: int) -> bytes:
        from vhostblk.block.io.iovec import IoVec

        await asyncio.sleep(0)
        if number in self.clusters:
            return self.clusters[number]
        size = self.cluster_size
        backing = self.children.get("backing")
        if backing is None:
            return bytes(size)
        iov = IoVec.allocate(size)
        await backing.preadv(number * size, iov)
        return iov.to_bytes()

    async def preadv(self, offset: int, iov: IoVec) -> None:
        size = self.cluster_size
        first, last = offset // size, -(-(offset + iov.nbytes) // size)
        data = b"".join([await self._cluster(number) for number in range(first, last)])
        iov.copy_from(data[offset - first * size :][: iov.nbytes])

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        data, size = iov.to_bytes(), self.cluster_size
        self.writes.append((offset, len(data), flags))
        while data:
            number, begin = divmod(offset, size)
            part = data[: size - begin]
            old = b""
            if len(part) < size:
                old = await self._cluster(number)
            await asyncio.sleep(0)
            self.clusters[number] = old[:begin] + part + old[begin + len(part) :]
            offset, data = offset + len(part), data[len(part) :]

    async def block_status(self, offset: int, length: int) -> Extent:
        size = self.cluster_size
        held = offset // size in self.clusters
        stop = offset // size
        while stop * size < offset + length and (stop in self.clusters) == held:
            stop += 1
        count = min(stop * size - offset, length)
        if held:
            return Extent(count, BlockStatus.DATA | BlockStatus.ALLOCATED)
        return Extent(count, BlockStatus.NONE if self.children else BlockStatus.ZERO)


class GrowNode(BlockNode):
    """A format whose file grows as it is written, with no end of its own."""

    driver = "test-grow"
    reopens = True

    def __init__(self, node_name: str, options: GrowOptions) -> None:
        super().__init__(node_name, options)
        self.read_only = bool(options.read_only)
        self.limits = BlockLimits()

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        node = cls(node_name, options)
        await graph.open_child(node, "file", options.file)
        return node

    @property
    def size(self) -> int:
        return 1 << 40

    def child_permissions(self, role: str, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        if perm & Perm.WRITE:
            perm |= Perm.RESIZE
        return perm, shared & ~Perm.RESIZE

    async def preadv(self, offset: int, iov: IoVec) -> None:
        await self.children["file"].preadv(offset, iov)

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        await self.children["file"].pwritev(offset, iov, flags)

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        await self.children["file"].pwrite_zeroes(offset, length, flags)


def register(patch: pytest.MonkeyPatch) -> None:
    """Make the graph know these drivers."""
    for node in (CowNode, GrowNode):
        made_of = f"{__name__}:{node.__name__}"
        patch.setitem(driver_manifest.DRIVERS, node.driver, driver_manifest.Driver(node=made_of))

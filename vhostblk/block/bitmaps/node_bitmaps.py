# SPDX-License-Identifier: Apache-2.0
"""The dirty bitmaps of nodes, for commands and jobs.

A write decides at its start whether to record, and so do extent maps. So bitmaps are added, enabled
and disabled inside drained sections: no write is lost or recorded in part. Changes of a whole
bitmap (clear, merge) of a node in use are done in drained sections as well.

Messages are QEMU's; functions raise BlockError.
"""

# ruff: noqa: D102 -- the methods of actions are described by the contract, `Action`.

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from vhostblk.block.errors import BlockError, NoNode
from vhostblk.errors import reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhostblk.block.bitmaps.dirty_bitmap import DirtyBitmap
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.node import BlockNode

DEFAULT_GRANULARITY = 64 << 10
MIN_GRANULARITY = 512


class KeepsBitmaps(ABC):
    """The capability of a node whose image can store the node's dirty bitmaps."""

    @abstractmethod
    async def check_new_bitmap(self, name: str, granularity: int) -> None:
        """Raise BlockError if the image can't store a bitmap of this name and granularity."""

    @abstractmethod
    async def remove_stored_bitmap(self, name: str) -> None:
        """Remove a bitmap from the image, if it is stored there; raises BlockError or OSError."""


def find(node: BlockNode, name: str) -> DirtyBitmap | None:
    """Return a node's bitmap by name."""
    return next((each for each in node.bitmaps if each.name == name), None)


def lookup(graph: Graph, node_name: str, name: str) -> tuple[BlockNode, DirtyBitmap]:
    """Return a node and its bitmap."""
    node = graph.find(node_name, NoNode.NODE)
    return node, _existing(node, name)


def _existing(node: BlockNode, name: str) -> DirtyBitmap:
    bitmap = find(node, name)
    if bitmap is None:
        raise BlockError(f"Dirty bitmap '{name}' not found")
    return bitmap


def _keeper(node: BlockNode) -> KeepsBitmaps | None:
    found: KeepsBitmaps | None = node.capability(KeepsBitmaps)
    return found


def check(bitmap: DirtyBitmap, *, change: bool = True, inconsistent: bool = False) -> None:
    """Raise BlockError if commands may not change, or use, a bitmap.

    `inconsistent`: an inconsistent bitmap is allowed.
    """
    if bitmap.busy:
        raise BlockError(
            f"Bitmap '{bitmap.name}' is currently in use by another operation and cannot be used"
        )
    if change and bitmap.read_only:
        raise BlockError(f"Bitmap '{bitmap.name}' is readonly and cannot be modified")
    if bitmap.inconsistent and not inconsistent:
        raise BlockError(f"Bitmap '{bitmap.name}' is inconsistent and cannot be used")


def check_source(bitmap: DirtyBitmap, size: int) -> None:
    """Raise BlockError if a bitmap can't be merged into one of a disk of `size` bytes."""
    check(bitmap, change=False)
    if bitmap.size != size:
        raise BlockError(
            f"Bitmaps are of different sizes (destination size is {size}, source size is "
            f"{bitmap.size}) and can't be merged"
        )


def default_granularity(node: BlockNode) -> int:
    """Return the default granularity of a node's bitmaps: its cluster size."""
    return min(max(node.cluster_size or DEFAULT_GRANULARITY, 4096), DEFAULT_GRANULARITY)


def make(node: BlockNode, name: str | None, granularity: int) -> DirtyBitmap:
    """Return a new bitmap for a node, without adding it."""
    from vhostblk.block.bitmaps.dirty_bitmap import MAX_NAME, DirtyBitmap  # imports numpy

    if name is not None:
        if find(node, name) is not None:
            raise BlockError(f"Bitmap already exists: {name}")
        if len(name.encode(errors="surrogateescape")) > MAX_NAME:
            raise BlockError(f"Bitmap name too long: {name}")
    try:
        return DirtyBitmap(name, granularity.bit_length() - 1, node.size)
    except (MemoryError, ValueError):
        raise BlockError(
            f"Cannot allocate memory for a bitmap of granularity {granularity}"
        ) from None


def refresh(node: BlockNode) -> None:
    """Update the node's list of recording bitmaps; call while drained, or while it is opened."""
    node.recorders = tuple(each for each in node.bitmaps if each.recording and not each.read_only)
    for edge in node.parents:
        edge.refresh()


class _BitmapAction(ABC):
    """A change to a bitmap of a node; an `Action`."""

    def __init__(self, graph: Graph, node_name: str, name: str) -> None:
        self._graph = graph
        self._node_name = node_name
        self._name = name
        self._node: BlockNode
        self._bitmap: DirtyBitmap

    def nodes(self) -> list[BlockNode]:
        return [lookup(self._graph, self._node_name, self._name)[0]]

    @abstractmethod
    async def prepare(self) -> None: ...

    async def commit(self) -> None:  # noqa: B027
        pass

    async def abort(self) -> None:  # noqa: B027
        pass

    def _look_up(self) -> tuple[BlockNode, DirtyBitmap]:
        self._node, self._bitmap = lookup(self._graph, self._node_name, self._name)
        return self._node, self._bitmap


class AddBitmap(_BitmapAction):
    """Add a bitmap to a node; `granularity` in bytes."""

    def __init__(
        self,
        graph: Graph,
        node_name: str,
        name: str,
        granularity: int | None = None,
        *,
        persistent: bool = False,
        disabled: bool = False,
    ) -> None:
        super().__init__(graph, node_name, name)
        self._granularity = granularity
        self._persistent = persistent
        self._disabled = disabled

    def nodes(self) -> list[BlockNode]:
        if not self._name:
            raise BlockError("Bitmap name cannot be empty")
        self._node = self._graph.find(self._node_name, device=self._node_name)
        return [self._node]

    async def prepare(self) -> None:
        node, granularity = self._node, self._granularity
        if granularity is None:
            granularity = default_granularity(node)
        elif granularity < MIN_GRANULARITY or granularity & (granularity - 1):
            raise BlockError(f"Granularity must be power of 2 and at least {MIN_GRANULARITY}")
        if self._persistent:
            keeper = _keeper(node)
            if keeper is None:
                what = f"Can't store persistent bitmaps to {node.node_name}"
                raise BlockError(f"{what}: {reason(errno.ENOTSUP)}")
            await keeper.check_new_bitmap(self._name, granularity)
        self._bitmap = make(node, self._name, granularity)
        self._bitmap.persistent, self._bitmap.disabled = self._persistent, self._disabled
        node.bitmaps.insert(0, self._bitmap)
        refresh(node)

    async def abort(self) -> None:
        self._node.bitmaps.remove(self._bitmap)
        refresh(self._node)


class RemoveBitmap(_BitmapAction):
    """Remove a bitmap from a node and its image. If undone, the image stores it again later."""

    async def prepare(self) -> None:
        node, bitmap = self._look_up()
        check(bitmap, inconsistent=True)
        self._persistent = bitmap.persistent
        if bitmap.persistent and (keeper := _keeper(node)) is not None:
            await keeper.remove_stored_bitmap(self._name)
        # Another action may have the image store its bitmaps, which must not include this one.
        bitmap.busy, bitmap.persistent = True, False

    async def commit(self) -> None:
        self._bitmap.busy = False
        self._node.bitmaps.remove(self._bitmap)
        refresh(self._node)

    async def abort(self) -> None:
        self._bitmap.busy, self._bitmap.persistent = False, self._persistent


class ClearBitmap(_BitmapAction):
    """Clear a bitmap."""

    async def prepare(self) -> None:
        _, bitmap = self._look_up()
        check(bitmap)
        self._former = bitmap.words.copy()
        bitmap.clear()

    async def abort(self) -> None:
        self._bitmap.words = self._former


class EnableBitmap(_BitmapAction):
    """Enable or disable a bitmap."""

    def __init__(self, graph: Graph, node_name: str, name: str, *, enabled: bool) -> None:
        super().__init__(graph, node_name, name)
        self._disabled = not enabled

    async def prepare(self) -> None:
        node, bitmap = self._look_up()
        check(bitmap, change=False)
        self._former = bitmap.disabled
        bitmap.disabled = self._disabled
        refresh(node)

    async def abort(self) -> None:
        self._bitmap.disabled = self._former
        refresh(self._node)


class MergeBitmaps(_BitmapAction):
    """Merge bitmaps into another one; `sources`: names in the same node, or node and name."""

    def __init__(
        self,
        graph: Graph,
        node_name: str,
        target: str,
        sources: Iterable[str | tuple[str, str]],
    ) -> None:
        super().__init__(graph, node_name, target)
        self._sources = list(sources)

    async def prepare(self) -> None:
        node, target = self._look_up()
        found = []
        for source in self._sources:
            if isinstance(source, str):
                other = _existing(node, source)
            else:
                other = lookup(self._graph, *source)[1]
            check_source(other, target.size)
            found.append(other)
        check(target)
        self._former = target.words.copy()
        for other in found:
            target.merge(other)

    async def abort(self) -> None:
        self._bitmap.words = self._former

# SPDX-License-Identifier: Apache-2.0
"""`copy-before-write`: copies old data to a target before it is overwritten.

Together, the source and the target have the data from when the filter was opened; `snapshot-access`
reads it. Three sets of clusters record the place of the data:

- *dirty* clusters (in `BlockCopy`) have not been copied;
- *done* clusters have been copied because of a write, and are read from the target. A write adds a
  cluster after the copy and before it proceeds to the source, and then waits for snapshot readers
  that already read the source there (`_frozen`);
- *accessible* clusters belong to the snapshot (with the option `bitmap`, those that are dirty in
  it) and have not been discarded by its reader.

If a copy fails, one of two things happens: either the write fails and nothing changes, or the
snapshot is broken and every later access to it fails.
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

import asyncio
import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from vhostblk.block.bitmaps import node_bitmaps
from vhostblk.block.copy.snapshot_source import SnapshotSource
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.filter import FilterNode
from vhostblk.block.graph.in_memory import KeptInMemory
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.completion import Completion
from vhostblk.block.io.flags import WriteFlags
from vhostblk.errors import errors_as, log_failure, os_error
from vhostblk.schema.base import UNSET
from vhostblk.schema.drivers.filters import OnCbwError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from vhostblk.block.bitmaps.dirty_bitmap import DirtyBitmap
    from vhostblk.block.copy.block_copy import BlockCopy
    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.node import BlockNode, Extent
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.engine.extents import ExtentMap

#: The minimum cluster size, as in QEMU.
DEFAULT_CLUSTER = 64 << 10
_MAX_INT64 = (1 << 63) - 1


class _FrozenRead:
    """A snapshot read of bytes [start, stop) of the source, which must not change meanwhile."""

    __slots__ = ("start", "stop", "waiters")

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self.waiters: list[Completion[None]] = []


class CopyBeforeWriteNode(FilterNode, SnapshotSource, KeptInMemory):
    """Copies clusters to the child "target" before the first write to each."""

    driver = "copy-before-write"
    named_by_child = True
    reopens = False
    #: The snapshot consists of unchanged blocks of "file" and saved blocks in "target".
    remembered_roles = frozenset({"file", "target"})

    def __init__(self, node_name: str, options: Any) -> None:
        super().__init__(node_name, options)
        self._target: Edge
        self._copy: BlockCopy
        self._frozen: list[_FrozenRead] = []
        #: Copies that continue after their write timed out.
        self._abandoned: set[asyncio.Task[None]] = set()
        #: Of shape (clusters,), bool.
        self._done: NDArray[np.bool_]
        self._accessible: NDArray[np.bool_]
        #: A copy has failed, and so the snapshot is lost.
        self._broken = False

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        import numpy as np

        from vhostblk.block.copy.block_copy import BlockCopy

        node = await super().open(node_name, options, graph)
        await graph.open_child(node, "target", options.target)
        node._target = node.children["target"]
        bitmap = None
        if options.bitmap is not UNSET:
            _, bitmap = node_bitmaps.lookup(graph, options.bitmap.node, options.bitmap.name)
        with errors_as(BlockError, "Cannot create block-copy-state", of=BlockError):
            cluster = _cluster_size(node._target.node, options.min_cluster_size)
            node._copy = BlockCopy(node._file, node._target, cluster, node.size)
            if bitmap is not None:
                node._copy.dirty &= _clusters_of(bitmap, cluster, node.size)
        node._done = np.zeros(len(node._copy.dirty), np.bool_)
        node._accessible = node._copy.dirty.copy()
        return node

    def child_permissions(self, role: str, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        if role == "target":
            return Perm.WRITE, Perm.ALL & ~Perm.RESIZE
        if self.parents:
            perm |= Perm.CONSISTENT_READ
            shared &= ~(Perm.WRITE | Perm.RESIZE)
        return perm, shared

    @property
    def only_in_memory(self) -> str:
        return "its snapshot's state"

    def extent_map(self) -> ExtentMap | None:
        return self.map_for_reading()

    # I/O of the disk.

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        await self._before_write(offset, iov.nbytes, flags)
        await self._file.pwritev(offset, iov, flags)

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        await self._before_write(offset, length, flags)
        await self._file.pwrite_zeroes(offset, length, flags)

    async def pdiscard(self, offset: int, length: int) -> None:
        await self._before_write(offset, length, WriteFlags.NONE)
        await self._file.pdiscard(offset, length)

    async def truncate(self, size: int) -> None:
        await self._file.truncate(size)
        self._copy.resize(size)
        self._done = _resized(self._done, len(self._copy.dirty))
        self._accessible = _resized(self._accessible, len(self._copy.dirty))

    async def settle(self) -> None:
        while self._abandoned:
            await asyncio.wait(set(self._abandoned))

    async def _before_write(self, offset: int, length: int, flags: WriteFlags) -> None:
        """Copy the data to be overwritten; raises OSError if the write must fail.

        Afterwards no snapshot read uses the source there.
        """
        if flags & WriteFlags.WRITE_UNCHANGED or self._broken or not length:
            return
        cluster = self._copy.cluster_size
        first, last = offset // cluster, -(-(offset + length) // cluster)
        try:
            if self.options.cbw_timeout:
                await self._copy_in_time(first, last)
            else:
                await self._copy.copy(first, last)
        except OSError:
            if self.options.on_cbw_error is OnCbwError.BREAK_GUEST_WRITE:
                raise
            self._broken = True
        else:
            self._done[first:last] = True
        await self._wait_for_readers(first * cluster, last * cluster)

    async def _copy_in_time(self, first: int, last: int) -> None:
        """Copy clusters; raise ETIMEDOUT after a time limit, while the copy continues."""
        loop = asyncio.get_running_loop()
        cancelled: list[bool] = []
        ended: Completion[None] = Completion()

        def end(_task: object = None) -> None:
            if not ended.done():
                ended.set_result(None)

        task = loop.create_task(
            self._copy.copy(first, last, cancelled), name=f"{self.node_name}: copying"
        )
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)
        task.add_done_callback(end)
        timer = loop.call_later(self.options.cbw_timeout, end)
        await ended
        timer.cancel()
        if task.done():
            task.result()
            return
        cancelled.append(True)
        task.add_done_callback(log_failure)
        raise os_error(errno.ETIMEDOUT)

    async def _wait_for_readers(self, start: int, stop: int) -> None:
        while True:
            read = next((r for r in self._frozen if r.start < stop and start < r.stop), None)
            if read is None:
                return
            ended: Completion[None] = Completion()
            read.waiters.append(ended)
            await ended

    # I/O of the snapshot.

    async def snapshot_preadv(self, offset: int, iov: IoVec) -> None:
        position = 0
        while position < iov.nbytes:
            start = offset + position
            edge, length = self._locate(start, iov.nbytes - position)
            with self._reading(edge, start, length):
                await edge.preadv(start, iov.slice(position, position + length))
            position += length

    async def snapshot_block_status(self, offset: int, length: int) -> Extent:
        edge, length = self._locate(offset, length)
        with self._reading(edge, offset, length):
            return await edge.block_status(offset, length)

    async def snapshot_pdiscard(self, offset: int, length: int) -> None:
        cluster = self._copy.cluster_size
        first, last = -(-offset // cluster), (offset + length) // cluster
        if last <= first:
            return
        self._accessible[first:last] = False
        self._copy.forget(first, last)
        await self._target.pdiscard(first * cluster, (last - first) * cluster)

    def _locate(self, offset: int, length: int) -> tuple[Edge, int]:
        """Return where the snapshot's data at `offset` is, and its length; raises EACCES."""
        cluster = self._copy.cluster_size
        first, last = offset // cluster, -(-(offset + length) // cluster)
        if self._broken or last > len(self._accessible) or not self._accessible[first:last].all():
            raise os_error(errno.EACCES)
        done = self._done[first:last]
        differs = done != done[0]
        if differs.any():
            length = (first + int(differs.argmax())) * cluster - offset
        return (self._target if done[0] else self._file), length

    @contextmanager
    def _reading(self, edge: Edge, offset: int, length: int) -> Iterator[None]:
        """Let writes to a range of the source wait while the block runs."""
        if edge is self._target:
            yield
            return
        read = _FrozenRead(offset, offset + length)
        self._frozen.append(read)
        try:
            yield
        finally:
            self._frozen.remove(read)
            for completion in read.waiters:
                completion.set_result(None)


def _cluster_size(target: BlockNode, least: int) -> int:
    """Return the cluster size; raises BlockError."""
    if least > _MAX_INT64:
        raise BlockError(f"min-cluster-size too large: {least} > {_MAX_INT64}")
    if least & (least - 1):
        raise BlockError("min-cluster-size needs to be a power of 2")
    least = max(least, DEFAULT_CLUSTER)
    return max(least, target.cluster_size)


def _clusters_of(bitmap: DirtyBitmap, cluster_size: int, size: int) -> NDArray[np.bool_]:
    """Return which clusters of a disk are dirty in a bitmap; raises BlockError."""
    from vhostblk.block.bitmaps.dirty_bitmap import DirtyBitmap

    try:
        node_bitmaps.check_source(bitmap, size)
    except BlockError as error:
        raise BlockError(
            f"Failed to merge bitmap '{bitmap.name}' to internal copy-bitmap: {error}"
        ) from error
    clusters = DirtyBitmap(None, cluster_size.bit_length() - 1, size)
    clusters.merge(bitmap)
    return clusters.granule_flags()


def _resized(clusters: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    import numpy as np

    result = np.zeros(count, np.bool_)
    kept = clusters[:count]
    result[: len(kept)] = kept
    return result

# SPDX-License-Identifier: Apache-2.0
"""`Qcow2Node`: the driver, with the interface of block nodes.

The common path is short: a request to clusters in the published table goes to the data file at
once. Other requests look up tables (`read`), or wait for their turn to change metadata (`write`).
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Any

from vhostblk.block import SECTOR
from vhostblk.block.drivers.qcow2.layout import (
    MAX_BACKING_NAME,
    MAX_FORMAT_NAME,
    READ,
    READ_ZERO,
    Kind,
)
from vhostblk.block.drivers.qcow2.reloading import Reloading
from vhostblk.block.errors import BlockError
from vhostblk.block.graph import inherit
from vhostblk.block.graph.amending import AmendsImage
from vhostblk.block.graph.checking import ChecksImage
from vhostblk.block.graph.edge import notify_resize
from vhostblk.block.graph.internal_snapshot import KeepsSnapshots
from vhostblk.block.graph.new_images import MakesOverlays
from vhostblk.block.graph.node import BlockStatus, Extent
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.pause import no_pause
from vhostblk.errors import os_error
from vhostblk.schema.base import UNSET
from vhostblk.schema.common import PreallocMode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vhostblk.block.drivers.qcow2.snapshots import Snapshot
    from vhostblk.block.graph.checking import CheckResult
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.node import Failures
    from vhostblk.block.io.completion import Completion
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.engine.extents import ExtentMap

_OFFSET = ~511


class Qcow2Node(Reloading, KeepsSnapshots, AmendsImage, ChecksImage, MakesOverlays):
    """A qcow2 image: children "file", and perhaps "data-file" and "backing"."""

    driver = "qcow2"
    late_modules = ("vhostblk.block.drivers.qcow2.image",)
    takes_bursts = True

    @property
    def size(self) -> int:
        return self._header.size

    @property
    def cluster_size(self) -> int:
        return self._header.geometry.cluster_size

    @property
    def subcluster_size(self) -> int:
        return self._header.geometry.subcluster_size

    @property
    def allocated_size(self) -> int | None:
        return self.children["file"].node.allocated_size

    @property
    def image_details(self) -> dict[str, Any]:
        from vhostblk.block.drivers.qcow2.describe import describe

        return describe(self._image, self.filename)

    def child_permissions(self, role: str, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        """Take what QEMU takes: exclusive access to metadata, and read access to backing files."""
        if role == inherit.BACKING:
            kept = Perm.WRITE | Perm.RESIZE if shared & Perm.WRITE else Perm.NONE
            return perm & Perm.CONSISTENT_READ, kept | Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED
        if role == inherit.DATA_FILE:
            if perm & Perm.WRITE_UNCHANGED:
                perm |= Perm.WRITE
            if perm & Perm.WRITE:
                perm |= Perm.RESIZE
            return perm, shared & ~Perm.RESIZE
        if role != "file":
            return Perm.CONSISTENT_READ, Perm.ALL
        if not self.read_only:  # metadata may be written though the guest writes nothing
            perm |= Perm.WRITE | Perm.RESIZE
        return perm | Perm.CONSISTENT_READ, shared & ~(Perm.WRITE | Perm.RESIZE)

    # Reading.

    async def preadv(self, offset: int, iov: IoVec) -> None:
        image = self._image
        publisher = image.publisher
        phase = publisher.begin()
        try:
            bits, entries = publisher.unit_bits, publisher.entries
            first, last = offset >> bits, (offset + iov.nbytes - 1) >> bits
            if first == last and first < len(entries):
                entry = int(entries[first])
                if entry & READ:
                    inside = offset & ((1 << bits) - 1)
                    await image.guest_data.read((entry & _OFFSET) + inside, iov)
                    return
                if entry & READ_ZERO:
                    iov.fill(0)
                    return
            await image.reader.read(offset, iov)
        finally:
            publisher.end(phase)

    async def block_status(self, offset: int, length: int) -> Extent:
        image = self._image
        # Up to the end of one slice: callers ask again.
        end = min(offset + length, image.tables.slice_end(offset))
        piece = (await image.reader.pieces(offset, end - offset))[0]
        status = BlockStatus.NONE
        where = piece.host if piece.kind is not Kind.COMPRESSED else -1
        if piece.kind in (Kind.DATA, Kind.COMPRESSED):
            status = BlockStatus.DATA | BlockStatus.ALLOCATED
        elif piece.kind is Kind.ZERO:
            status = BlockStatus.ZERO | BlockStatus.ALLOCATED
        elif image.backing is None:
            status = BlockStatus.ZERO
        if where >= 0:
            status |= BlockStatus.OFFSET_VALID
        if offset + piece.length == self.size:
            status |= BlockStatus.EOF
        return Extent(piece.length, status, max(where, 0), image.data.node)

    def known_zero(self, offset: int, length: int) -> bool:
        image = self._image
        bits, entries = image.publisher.unit_bits, image.publisher.entries
        first, last = offset >> bits, (offset + length - 1) >> bits
        if last < len(entries) and (entries[first : last + 1] & READ_ZERO).all():
            return True
        return image.reader.known_absent(offset, length) and (
            image.backing is None or image.backing.known_zero(offset, length)
        )

    # Writing.

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        image = self._image
        if flags and flags & WriteFlags.WRITE_COMPRESSED:
            from vhostblk.block.drivers.qcow2.write_compressed import write_compressed

            image.check_usable()
            await write_compressed(image, offset, iov)
            return
        publisher = image.publisher
        host = publisher.overwritable(offset, iov.nbytes)
        if host < 0:
            image.check_usable()
            await image.writer.write(offset, iov)
            return
        phase = publisher.begin()
        try:
            await image.guest_data.write(host, iov)
            image.commit.wrote()
        finally:
            publisher.end(phase)

    def pwritev_burst(self, offsets: list[int], iovs: list[IoVec]) -> Completion[Failures] | None:
        image = self._image
        # Pure overwrites don't wait for other operations.
        if image.unusable or image.publisher.any_overwritable(offsets):
            return None
        return image.writer.write_burst(offsets, iovs)

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        image = self._image
        image.check_usable()
        unit = image.geometry.subcluster_size
        stop = offset + length
        low, high = -(-offset // unit) * unit, stop // unit * unit
        if stop == image.size:
            high = stop
        if low >= high:
            await self._zero_bytes(offset, stop)
            return
        async with image.lock:
            await image.zeroer.zero(low, high - low, unmap=bool(flags & WriteFlags.MAY_UNMAP))
            await image.relieve()
        await self._zero_bytes(offset, low)
        await self._zero_bytes(high, stop)

    async def _zero_bytes(self, start: int, stop: int) -> None:
        """Zero parts of subclusters: by data, or by entries if the rest is zero already."""
        from vhostblk.block.io.iovec import IoVec  # imports numpy

        image, unit, step = self._image, self._image.geometry.subcluster_size, 1 << 20
        while start < stop:
            end = min(stop, (start // unit + 1) * unit)
            async with image.lock:
                done = await image.zeroer.zero_around(start, max(image.size, stop))
                await image.relieve()
            for low in range(start, end, step) if not done else ():
                await self.pwritev(low, IoVec.allocate(min(step, end - low)))
            start = end

    async def pdiscard(self, offset: int, length: int) -> None:
        image = self._image
        image.check_usable()
        size = image.geometry.cluster_size
        stop = offset + length
        low, high = -(-offset // size) * size, stop // size * size
        if stop == image.size:
            high = stop
        if low < high:
            async with image.lock:
                await image.zeroer.discard(low, high - low)
                await image.relieve()

    async def flush(self) -> None:
        if not self._is_loaded:  # nothing was written, either
            return
        await self._image.flusher.flush()

    async def flush_children(self) -> None:
        await self.flush()  # this node has nothing else to flush

    async def write_back(self) -> None:
        if self._is_loaded:
            await self._image.flusher.write_back()

    async def check_image(self, *, repair: bool) -> CheckResult:
        from vhostblk.block.drivers.qcow2.check import check

        image = self._image
        async with self._graph.drained([self]), image.lock:
            image.check_usable()
            if image.writable:
                await image.commit.write_all()
            image.tables.clear()
            return await check(image, repair=repair)

    def child_changed(self, role: str) -> None:
        if not self._is_loaded:
            return
        if role == inherit.BACKING:
            self._image.take_backing(self.children.get(inherit.BACKING))
        elif role == "file":
            self._image.forget_storage()

    async def amend(self, options: Any) -> None:
        if options.encrypt is not UNSET:
            raise BlockError("image is not encrypted, can't amend")

    @classmethod
    async def make_overlay(cls, file: Any, size: int, graph: Graph) -> None:
        from vhostblk.block.drivers.qcow2.create import create
        from vhostblk.schema.drivers.qcow2_create import BlockdevCreateOptionsQcow2

        sectors = -(-size // SECTOR)
        options = BlockdevCreateOptionsQcow2(file=file, size=sectors * SECTOR)
        await create(options, graph, no_pause)

    # The backing file in the header.

    async def change_backing_file(self, name: str, driver: str | None) -> None:
        image = self._image
        raw = name.encode(errors="surrogateescape")
        if driver is not None and len(driver.encode()) > MAX_FORMAT_NAME:
            raise os_error(errno.EINVAL)
        if len(raw) > MAX_BACKING_NAME or image.header.raw_data_file:
            raise os_error(errno.EINVAL)
        async with image.lock:
            image.check_usable()
            kind = None if driver is None else driver.encode()
            try:
                await image.header_file.rewrite(backing_file=raw, backing_format=kind)
            except BlockError as error:  # no room in the header
                raise os_error(errno.ENOSPC) from error
        self.auto_backing_name = name

    # Internal snapshots.

    def snapshots(self) -> list[Snapshot]:
        return list(self._image.snapshots.entries)

    async def create_snapshot(self, name: str, device: str | None = None) -> Snapshot:
        from vhostblk.block.drivers.qcow2 import snapshot_changes

        image = self._image
        now = time.time_ns()
        async with self._graph.drained([self]), image.lock:
            image.check_usable()
            raw = name.encode(errors="surrogateescape")
            if snapshot_changes.find(image, None, raw) is not None:
                raise BlockError(
                    f"Snapshot with name '{name}' already exists on device "
                    f"'{device or self.node_name}'"
                )
            return await snapshot_changes.create(image, raw, *divmod(now, 10**9))

    async def apply_snapshot(self, *, id: str | None = None, name: str | None = None) -> Snapshot:  # noqa: A002
        from vhostblk.block.drivers.qcow2 import snapshot_apply

        image = self._image
        async with self._graph.drained([self]), image.lock:
            image.check_usable()
            if self.bitmaps:
                raise OSError(errno.EBUSY, "Device has active dirty bitmaps")
            found = self._find_snapshot(id, name)
            size = image.size
            try:
                await snapshot_apply.apply(image, found)
            finally:
                if image.size != size:
                    notify_resize(self)
            return found

    def _find_snapshot(
        self, number: str | None, name: str | None, device: str | None = None
    ) -> Snapshot:
        from vhostblk.block.drivers.qcow2 import snapshot_changes

        found = snapshot_changes.find(
            self._image,
            None if number is None else number.encode(errors="surrogateescape"),
            None if name is None else name.encode(errors="surrogateescape"),
        )
        if found is None:
            raise BlockError(
                f"Snapshot with id '{number or 'null'}' and name '{name or 'null'}' does not exist "
                f"on device '{device or self.node_name}'"
            )
        return found

    async def delete_snapshot(
        self,
        *,
        id: str | None = None,  # noqa: A002
        name: str | None = None,
        device: str | None = None,
    ) -> Snapshot:
        from vhostblk.block.drivers.qcow2 import snapshot_changes

        image = self._image
        async with self._graph.drained([self]), image.lock:
            image.check_usable()
            found = self._find_snapshot(id, name, device)
            await snapshot_changes.delete(image, found)
            return found

    async def truncate(self, size: int) -> None:
        await self.grow(size, PreallocMode.OFF)

    async def grow(
        self, size: int, mode: PreallocMode, pause: Callable[[], Awaitable[None]] = no_pause
    ) -> None:
        from vhostblk.block.drivers.qcow2.resize import resize

        image = self._image
        image.check_usable()
        image.bitmaps.check_resize(self.bitmaps)
        await resize(image, size, mode, pause, self._zero_bytes)

    def extent_map(self) -> ExtentMap | None:
        return self._image.publisher.extent_map()

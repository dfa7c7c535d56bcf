# SPDX-License-Identifier: Apache-2.0
"""Opening, closing and reopening an image; reloading is in `reloading`.

All steps of opening that may fail are done at once. `Image` needs numpy. So it is created from the
data read on its first use, or at once if there is more to do (snapshots, bitmaps, repair).
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

import asyncio
import logging
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from vhostblk.block.bitmaps import node_bitmaps
from vhostblk.block.bitmaps.node_bitmaps import KeepsBitmaps
from vhostblk.block.drivers.qcow2.backing import open_backing, open_data_file
from vhostblk.block.drivers.qcow2.layout import Incompatible
from vhostblk.block.drivers.qcow2.opening import read_header, read_top_tables
from vhostblk.block.drivers.qcow2.options import settle
from vhostblk.block.errors import BlockError
from vhostblk.block.graph import inherit
from vhostblk.block.graph.backing_name import NamesBacking
from vhostblk.block.graph.node import BlockLimits, BlockNode
from vhostblk.block.io.flags import WriteFlags
from vhostblk.errors import errors_as, reason
from vhostblk.schema.base import UNSET
from vhostblk.schema.block import BlockImageCorrupted

if TYPE_CHECKING:
    from vhostblk.block.bitmaps.dirty_bitmap import DirtyBitmap
    from vhostblk.block.drivers.qcow2.header import Header
    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.opening import TopTables
    from vhostblk.block.drivers.qcow2.options import Settings
    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.graph import Graph

logger = logging.getLogger(__name__)


class Lifecycle(BlockNode, KeepsBitmaps, NamesBacking):
    """The life of a node, from opening to closing."""

    reopens = True
    remembered_roles = frozenset({"file"})
    mutable_options = frozenset(
        {
            "lazy_refcounts",
            "pass_discard_request",
            "pass_discard_snapshot",
            "pass_discard_other",
            "discard_no_unref",
            "overlap_check",
            "cache_size",
            "l2_cache_size",
            "l2_cache_entry_size",
            "refcount_cache_size",
            "cache_clean_interval",
        }
    )

    def __init__(self, node_name: str, options: Any) -> None:
        super().__init__(node_name, options)
        self.read_only = options.read_only
        self.native_flags = WriteFlags.WRITE_COMPRESSED | WriteFlags.WRITE_UNCHANGED
        self._graph: Graph
        self._header: Header
        self._settings: Settings
        #: The data from which the image will be created.
        self._tables: TopTables | None = None
        self._cleaning: asyncio.TimerHandle | None = None

    # Opening and closing.

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        node = cls(node_name, options)
        node._graph = graph
        await graph.open_child(node, "file", options.file)
        parsed = await read_header(node.children["file"])
        if parsed.crypt_method:
            raise BlockError(f"qcow2: encrypted images are not supported ('{node.filename}')")
        if parsed.incompatible & Incompatible.CORRUPT and not node.read_only:
            raise BlockError("qcow2: Image is corrupt; cannot be opened read/write")
        await open_data_file(node, graph, parsed)
        node._header, node._settings = parsed, settle(options, parsed)
        await open_backing(node, graph, parsed)
        node._note_backing_name(parsed)
        node._tables = await read_top_tables(node.children["file"], parsed)
        if node._tables is None:
            await node._load_image()
        else:
            node.refresh_limits()
            node._schedule_cleaning()
        return node

    @cached_property
    def _image(self) -> Image:
        """The image; `_load_image` sets it."""
        image = self._new_image()
        assert self._tables is not None
        image.take_tables(self._tables)
        self._tables = None
        image.allow_writes(allowed=self.writable_image)
        return image

    def _new_image(self) -> Image:
        from vhostblk.block.drivers.qcow2.image import Image

        image = Image(*self._edges(), self._header, self._settings)
        image.on_corruption = self._report_corruption
        return image

    @property
    def _is_loaded(self) -> bool:
        return self._tables is None

    def _note_backing_name(self, parsed: Header) -> None:
        self.auto_backing_name = ""
        backing = self.children.get(inherit.BACKING)
        if backing is not None and self.options.backing is UNSET:
            from vhostblk.block.graph.image_name import image_name

            self.auto_backing_name = image_name(backing.node)
        elif parsed.backing_file:
            self.auto_backing_name = parsed.backing_file.decode(errors="replace")

    def _edges(self) -> tuple[Edge, Edge, Edge | None]:
        """Return the edges for metadata, data and backing file."""
        file = self.children["file"]
        return file, self.children.get(inherit.DATA_FILE, file), self.children.get(inherit.BACKING)

    async def _load_image(self) -> None:
        """Read the whole image, and do what its state requires."""
        image = self._new_image()
        await image.load()
        self._image, self._tables = image, None
        self.refresh_limits()
        try:
            bitmaps = await self._load_bitmaps(image, self.bitmaps) if self.active else self.bitmaps
            self._take_bitmaps(bitmaps)
            await self._prepare_writing()
        except BaseException:
            await image.settled()  # the file may be closed now
            raise
        self._schedule_cleaning()

    async def _prepare_writing(self) -> None:
        """Prepare an image that was just loaded for the first write."""
        image = self._image
        image.allow_writes(allowed=self.writable_image)
        if not image.writable:
            return
        with errors_as(BlockError, "Could not update qcow2 header"):
            await image.prepare_writing()
        with errors_as(BlockError, "Can't update bitmap directory"):
            await image.bitmaps.mark_in_use()
        self._lock_bitmaps(locked=False)

    async def _load_bitmaps(self, image: Image, present: list[DirtyBitmap]) -> list[DirtyBitmap]:
        """Read the bitmaps stored in an image; return the bitmaps that the node then has.

        Stored bitmaps replace persistent ones of `present` with the same names.
        """
        former = {each.name: each for each in present if each.persistent}
        loaded = await image.bitmaps.load()
        names = {each.name for each in loaded}
        bitmaps = [each for each in present if not each.persistent or each.name not in names]
        for bitmap in loaded:
            if any(each.name == bitmap.name for each in bitmaps):
                raise BlockError(f"Bitmap already exists: {bitmap.name}")
            known = former.get(bitmap.name)
            if known is not None and not bitmap.inconsistent:
                bitmap.disabled = known.disabled
            bitmap.read_only = True  # until they are marked "in use" in the file
            bitmaps.insert(0, bitmap)
        return bitmaps

    def _take_bitmaps(self, bitmaps: list[DirtyBitmap]) -> None:
        self.bitmaps = bitmaps
        node_bitmaps.refresh(self)

    def _schedule_cleaning(self) -> None:
        """Schedule periodic eviction of unused tables from the cache."""
        if self._cleaning is not None:
            self._cleaning.cancel()
            self._cleaning = None
        interval = self._settings.clean_interval
        if interval:
            loop = asyncio.get_running_loop()
            self._cleaning = loop.call_later(interval, self._clean)

    def _clean(self) -> None:
        if self._is_loaded:
            self._image.tables.clean_unused()
        self._schedule_cleaning()

    def _report_corruption(self, text: str, offset: int, size: int, fatal: bool) -> None:
        self._graph.events.emit(
            "BLOCK_IMAGE_CORRUPTED",
            BlockImageCorrupted(
                device="",
                node_name=self.node_name,
                msg=text,
                offset=UNSET if offset < 0 else offset,
                size=UNSET if size < 0 else size,
                fatal=fatal,
            ),
        )

    @property
    def writable_image(self) -> bool:
        """Whether metadata may be written."""
        return not self.read_only and self.active

    async def close(self) -> None:
        if self._cleaning is not None:
            self._cleaning.cancel()
        try:
            await self.give_up_writing()
        except OSError as error:
            logger.error("%s: closing: %s", self.filename, reason(error))
        await self.settle()

    async def settle(self) -> None:
        if self._is_loaded:
            await self._image.settled()

    async def give_up_writing(self) -> None:
        if not self._is_loaded:
            return
        image = self._image
        if not image.writable or image.unusable:
            return
        failed: OSError | None = None
        async with image.lock:
            try:
                await image.bitmaps.store(self.bitmaps)
            except OSError as error:
                failed = error  # the rest is done all the same
            else:
                self._lock_bitmaps(locked=True)
            if image.untidy:
                from vhostblk.block.drivers.qcow2.snapshot_changes import try_to_tidy_up

                await try_to_tidy_up(image)
            await image.commit.close()
        if failed is not None:
            what = f"Lost persistent bitmaps during inactivation of node '{self.node_name}'"
            raise OSError(failed.errno, f"{what}: {reason(failed)}")

    async def resume_writing(self) -> None:
        if not self._is_loaded:
            return
        image = self._image
        if not image.writable or image.unusable:
            return
        try:
            async with image.lock:
                await image.bitmaps.mark_in_use()
        except (OSError, BlockError) as error:
            image.refuse_writes()  # else the bitmaps in the file would miss later writes
            logger.error("%s: bitmaps can't be used: %s", self.filename, reason(error))
            return
        self._lock_bitmaps(locked=False)

    def _lock_bitmaps(self, *, locked: bool) -> None:
        """Set whether the persistent bitmaps may change."""
        for bitmap in self.bitmaps:
            if bitmap.persistent:
                bitmap.read_only = locked
        node_bitmaps.refresh(self)

    async def check_new_bitmap(self, name: str, granularity: int) -> None:
        if node_bitmaps.find(self, name) is not None:
            raise BlockError(f"Bitmap already exists: {name}")
        try:
            self._image.bitmaps.check_new(name, granularity, self.bitmaps)
        except BlockError as error:
            raise BlockError(
                f"Can't make bitmap '{name}' persistent in '{self.node_name}': {error}"
            ) from error

    async def remove_stored_bitmap(self, name: str) -> None:
        image = self._image
        async with image.lock:
            with errors_as(BlockError, "Failed to update bitmap extension"):
                image.check_usable()
                await image.bitmaps.remove(name)

    # Reopening.

    def prepare_reopen(self, options: Any) -> None:
        settle(options, self._header)
        corrupt = self._header.incompatible & Incompatible.CORRUPT
        if corrupt and not options.read_only:
            raise BlockError("qcow2: Image is corrupt; cannot be opened read/write")

    def take_options(self, options: Any) -> None:
        super().take_options(options)
        self._settings = settle(options, self._header)
        if self._is_loaded:
            self._image.take_settings(self._settings)
            self._image.allow_writes(allowed=self.writable_image)
        self._schedule_cleaning()

    def refresh_limits(self) -> None:
        geometry = self._header.geometry
        self.limits = BlockLimits(
            discard_granularity=geometry.cluster_size,
            optimal_transfer=geometry.cluster_size,
            # So that a long request doesn't delay others, or keep too many tables in memory.
            max_discard=geometry.cluster_size << 12,
            max_write_zeroes=geometry.cluster_size << 12,
        )

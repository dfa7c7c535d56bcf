# SPDX-License-Identifier: Apache-2.0
"""Reloading an image: another process may have changed it, or the node has another file.

Tables, sizes and bitmaps belong to one file. They are reloaded when the node gets another file, or
when the nodes below it show other data. The former image is kept for roll-back until the change is
final. Nothing is written in between: metadata in memory was written to the former file before the
change (`give_up_writing`).
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhostblk.block.drivers.qcow2.layout import Incompatible
from vhostblk.block.drivers.qcow2.lifecycle import Lifecycle
from vhostblk.block.drivers.qcow2.opening import read_header
from vhostblk.block.drivers.qcow2.options import settle
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.edge import notify_resize
from vhostblk.block.graph.filename import full_name
from vhostblk.block.graph.image_name import image_name
from vhostblk.block.graph.inherit import BACKING, DATA_FILE
from vhostblk.schema.base import UNSET

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from vhostblk.block.bitmaps.dirty_bitmap import DirtyBitmap
    from vhostblk.block.drivers.qcow2.header import Header
    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.opening import TopTables
    from vhostblk.block.drivers.qcow2.options import Settings


@dataclass(frozen=True)
class _State:
    """The state that a node has read from its file."""

    header: Header
    settings: Settings
    tables: TopTables | None
    #: None: not created yet (see `lifecycle`).
    image: Image | None
    bitmaps: list[DirtyBitmap]
    backing_name: str


class Reloading(Lifecycle):
    """A node that can reload its image, from the same file or from another one."""

    #: The state before `load_other_data`, until the change is final.
    _former: _State | None = None

    async def reload_image(self) -> None:
        """Reload the image from the same file; the children stay."""
        former, size = (self._header, self._settings), self.size
        try:
            parsed = await self._read_other_header()
            await self.settle()
            self._header, self._settings = parsed, settle(self.options, parsed)
            await self._load_image()
        except BlockError:
            self._header, self._settings = former
            self._image.refuse_writes()
            raise
        if self.size != size:
            notify_resize(self)

    async def _read_other_header(self) -> Header:
        """Read the header, which may be another image's; raises BlockError if it can't be used.

        The children "data-file" and "backing" stay.
        """
        parsed = await read_header(self.children["file"])
        if parsed.geometry.external_data != self._header.geometry.external_data:
            raise BlockError(
                "qcow2: an image can't gain or lose an external data file while in use"
            )
        if parsed.crypt_method:
            raise BlockError(f"qcow2: encrypted images are not supported ('{self.filename}')")
        if parsed.incompatible & Incompatible.CORRUPT and not self.read_only:
            raise BlockError("qcow2: Image is corrupt; cannot be opened read/write")
        return parsed

    async def load_other_data(self, roles: AbstractSet[str]) -> None:
        if "file" not in roles:
            return
        self._former = self._state()
        parsed = await self._read_other_header()
        self._check_other_names(parsed)
        self._header, self._settings = parsed, settle(self.options, parsed)
        image = self._new_image()
        await image.load()
        bitmaps = [each for each in self.bitmaps if not each.persistent]
        if self.active:
            bitmaps = await self._load_bitmaps(image, bitmaps)
        self._image, self._tables = image, None
        self._note_backing_name(parsed)
        self._take_bitmaps(bitmaps)
        self._schedule_cleaning()

    def keep_other_data(self) -> None:
        if self._former is not None:
            self._former = None
            # No writes until `start_writing` has prepared the image, for example its bitmaps.
            if self.writable_image:
                self._image.defer_writes()

    def drop_other_data(self) -> None:
        former, self._former = self._former, None
        if former is None:
            return
        self._header, self._settings = former.header, former.settings
        self._tables = former.tables
        self.__dict__.pop("_image", None)
        if former.image is not None:
            self._image = former.image
        self.auto_backing_name = former.backing_name
        self._take_bitmaps(former.bitmaps)
        self._schedule_cleaning()

    async def start_writing(self) -> None:
        self._image.admit_writes()
        try:
            await self._prepare_writing()
        except BaseException:
            self._image.refuse_writes()
            raise

    def _state(self) -> _State:
        return _State(
            self._header,
            self._settings,
            self._tables,
            self.__dict__.get("_image"),
            self.bitmaps,
            self.auto_backing_name,
        )

    def _check_other_names(self, parsed: Header) -> None:
        """Raise BlockError if the image refers to other children than the node has.

        Children that the user has chosen by an option are not checked.
        """
        if self.options.backing is UNSET and not self._goes_with_backing(parsed):
            raise BlockError(f"backing is missing for '{self.node_name}'")
        if self.options.data_file is UNSET and parsed.geometry.external_data:
            child = self.children[DATA_FILE].node
            name = parsed.data_file
            if name is None or name.decode(errors="surrogateescape") != child.filename:
                raise BlockError(f"data-file is missing for '{self.node_name}'")

    def _goes_with_backing(self, parsed: Header) -> bool:
        """Return whether the image and the node have the same backing file, or none."""
        edge = self.children.get(BACKING)
        if edge is None or parsed.backing_file is None:
            return edge is None and parsed.backing_file is None
        kind = edge.node.driver if parsed.backing_format is None else parsed.backing_format.decode()
        backing = parsed.backing_file.decode(errors="surrogateescape")
        name = full_name(backing, self.filename, kind)
        return kind == edge.node.driver and name == image_name(edge.node)

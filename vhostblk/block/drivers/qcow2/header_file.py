# SPDX-License-Identifier: Apache-2.0
"""`HeaderFile`: changes of the header, in memory and in the file together.

The header has the offsets of all tables. A change is one write of one sector, followed by a flush.
Before that, everything that the new header refers to is put on stable storage. If the write or the
flush fails, or the task is cancelled, the file may have either header. It is *in doubt*: `commit`
writes the header again before it writes anything else. The header in memory is then the former one,
except after `go_over`. While the header is in doubt, the clusters that either header refers to stay
in use and unchanged. So a crash leaves the image before the change or after it.
"""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from vhostblk.block.drivers.qcow2 import header as header_module
from vhostblk.block.drivers.qcow2.layout import HEADER, Incompatible
from vhostblk.block.drivers.qcow2.transfer import Mutex, write_bytes
from vhostblk.block.errors import BlockError

if TYPE_CHECKING:
    from vhostblk.block.drivers.qcow2.image import Image


class _Doubt(IntEnum):
    """Which part of the file's header may differ from the one in memory."""

    NOTHING = 0
    #: The fields that `change` writes.
    FIELDS = 1
    #: The whole header, with extensions and the backing file name.
    EVERYTHING = 2


class HeaderFile:
    """The header of an image in its file."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._doubt = _Doubt.NOTHING
        self._turn = Mutex()

    @property
    def in_doubt(self) -> bool:
        """Whether the file's header may differ from the one in memory."""
        return self._doubt is not _Doubt.NOTHING

    async def change(self, **members: int) -> None:
        """Change header fields in memory and in the file; raises OSError.

        `members` are those of `Header` that have a fixed place: sizes, offsets and features. The
        caller holds the image's lock, and has put all that they refer to on stable storage.
        """
        await self._try(_Doubt.FIELDS, members)

    async def go_over(self, **members: int) -> None:
        """Change header fields as `change` does, but keep them in memory even if that fails."""
        self._set(members)
        self._doubt = max(self._doubt, _Doubt.FIELDS)
        await self.confirm()

    async def rewrite(self, **members: Any) -> None:
        """Write the whole header with changed members; raises BlockError or OSError.

        BlockError: the header is too long for its cluster. The file is unchanged then.
        """
        await self._try(_Doubt.EVERYTHING, members)

    async def _try(self, what: _Doubt, members: dict[str, Any]) -> None:
        former = self._set(members)
        try:
            async with self._turn:
                await self._write(what)
        except BaseException:
            self._set(former)
            raise

    async def set_dirty(self, dirty: bool) -> None:
        """Set or clear the dirty bit: refcounts in the file may be too low. Raises OSError."""
        header, bit = self._image.header, int(Incompatible.DIRTY)
        if bool(header.incompatible & bit) == dirty:
            return
        header.incompatible ^= bit
        try:
            async with self._turn:
                await self._write(_Doubt.FIELDS)
        except BaseException:
            header.incompatible ^= bit
            raise

    async def confirm(self) -> None:
        """Write the header again if it is in doubt; raises OSError."""
        async with self._turn:
            if not self.in_doubt:
                return
            try:
                await self._write(self._doubt)
            except BlockError as error:
                raise OSError(errno.ENOSPC, str(error)) from error

    async def mark_corrupt(self) -> None:
        """Write the feature bits, with the corrupt bit set, to the file; raises OSError.

        The caller need not hold the image's lock, as only these bits are written.
        """
        async with self._turn:
            offset = HEADER.offsets["incompatible_features"]
            features = self._image.header.incompatible.to_bytes(8, "big")
            await write_bytes(self._image.file, offset, features)
            await self._image.file.flush()

    def _set(self, members: dict[str, Any]) -> dict[str, Any]:
        """Change members in memory; return their former values."""
        header = self._image.header
        former = {name: getattr(header, name) for name in members}
        for name, value in members.items():
            setattr(header, name, value)
        return former

    async def _write(self, what: _Doubt) -> None:
        """Write the header as it is in memory, and put it on stable storage."""
        if what is _Doubt.EVERYTHING:
            offset, data = 0, header_module.encode(self._image.header)
        else:
            offset, data = header_module.encode_fields(self._image.header)
        self._doubt = max(self._doubt, what)
        await write_bytes(self._image.file, offset, data)
        await self._image.file.flush()
        if self._doubt is what:
            self._doubt = _Doubt.NOTHING

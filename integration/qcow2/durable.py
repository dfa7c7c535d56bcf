# SPDX-License-Identifier: Apache-2.0
"""The part of a qcow2 image that survives a crash in any case: its files, and a reader of them."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from typing import TYPE_CHECKING

from integration.qcow2.record import RecordingNode, apply_change

if TYPE_CHECKING:
    from vhostblk.block.drivers.qcow2.image import Image

_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62


class DurableFile(RecordingNode):
    """A recorded file; `stable` is what has been flushed, and so survives a crash in any case."""

    def __init__(self, name: str, data: bytes) -> None:
        super().__init__(data)
        self.node_name = name
        self.stable = bytearray(data)
        #: How many times `stable` has changed.
        self.changes = 0
        self._applied = 0
        #: Changes that are durable without a later flush.
        self._synced: set[int] = set()
        #: The number of event loop turns that a flush takes.
        self.flush_turns = 1
        #: Flushes fail.
        self.broken = False

    async def flush(self) -> None:
        end = len(self.log)
        for _ in range(self.flush_turns):
            await asyncio.sleep(0)
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._synced = {index for index in self._synced if index >= end}
        for index in [*range(self._applied, end), *sorted(self._synced)]:
            change = self.log[index]
            assert change is not None
            apply_change(self.stable, change)
        self._applied = max(self._applied, end)
        self.changes += 1

    async def pwrite_synced(self, offset: int, data: bytes) -> None:
        """Write with RWF_DSYNC."""
        await asyncio.sleep(0)
        self._synced.add(len(self.log))
        self._change((offset, data))
        apply_change(self.stable, (offset, data))
        self.changes += 1


class DurableDisk:
    """The disk of an image, as it is found after a crash in any case."""

    def __init__(self, image: Image, file: DurableFile, data: DurableFile) -> None:
        self._file = file
        self._data = data
        geometry = image.geometry
        self._extended = geometry.extended_l2
        self._external = geometry.external_data
        self._bits = geometry.cluster_bits
        self._unit_bits = geometry.subcluster_bits
        self._l2_bits = geometry.l2_bits

    def place(self, unit: int) -> int:
        """Return the offset of a (sub)cluster in the data file; -1: it reads as zeroes."""
        meta = self._file.stable
        spread = self._bits - self._unit_bits
        cluster, sub = unit >> spread, unit & ((1 << spread) - 1)
        (l1_size,) = struct.unpack_from(">I", meta, 36)
        (l1_offset,) = struct.unpack_from(">Q", meta, 40)
        index = cluster >> self._l2_bits
        if index >= l1_size:
            return -1
        (word,) = struct.unpack_from(">Q", meta, l1_offset + 8 * index)
        table = word & _OFFSET
        if not table:
            return -1
        inside = cluster & ((1 << self._l2_bits) - 1)
        if self._extended:
            word, bitmap = struct.unpack_from(">QQ", meta, table + 16 * inside)
            allocated = bool(bitmap >> sub & 1)
        else:
            (word,) = struct.unpack_from(">Q", meta, table + 8 * inside)
            allocated = not word & 1 and bool(word & _OFFSET or (self._external and word))
        assert not word & _COMPRESSED
        return (word & _OFFSET) + (sub << self._unit_bits) if allocated else -1

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of one (sub)cluster."""
        place = self.place(offset >> self._unit_bits)
        if place < 0:
            return bytes(length)
        place += offset & ((1 << self._unit_bits) - 1)
        return bytes(self._data.stable[place : place + length]).ljust(length, b"\0")

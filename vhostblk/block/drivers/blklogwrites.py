# SPDX-License-Identifier: Apache-2.0
"""`blklogwrites`: passes writes on, and appends them to a log for replay.

Each request goes to the file first. When it has completed, it gets its place in the log and is
written there. So the entries are in the order in which the file completed the requests. The
superblock has the number of entries; replay ignores later ones. It is updated after a flush, and
after each interval of writes.
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Self

from msgspec.structs import replace

from vhostblk.block.drivers.blklogwrites_layout import (
    ALL_FLAGS,
    ENTRY_BYTES,
    MAGIC,
    SUPER_BYTES,
    VERSION,
    LogEntry,
    LogFlag,
    LogSuper,
    is_sector_size,
)
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.edge import flush_node
from vhostblk.block.graph.filter import FilterNode
from vhostblk.block.graph.in_memory import KeptInMemory
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io import shaping
from vhostblk.block.io.completion import Completion
from vhostblk.block.io.flags import WriteFlags
from vhostblk.errors import errors_as, reason
from vhostblk.schema.base import UNSET

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.io.iovec import IoVec

logger = logging.getLogger(__name__)

_DEFAULT_SECTOR = 512


class BlklogwritesNode(FilterNode, KeptInMemory):
    """A filter that logs all writes."""

    driver = "blklogwrites"
    reopens = False
    remembered_roles = frozenset({"log"})

    def __init__(self, node_name: str, options: Any) -> None:
        super().__init__(node_name, options)
        self.native_flags = WriteFlags.NONE
        self._log: Edge
        self._sector_size = _DEFAULT_SECTOR
        #: The sector of the next entry, and the number of entries.
        self._next_sector = 1
        self._entries = 0
        #: The number of entries in the superblock, and the state of its update.
        self._entries_in_super = 0
        self._updating_super = False
        self._waiting: list[Completion[None]] = []

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        node = cls(node_name, options)
        await graph.open_child(node, "file", options.file)
        await graph.open_child(node, "log", options.log)
        node._log = node.children["log"]
        await node._open_log()
        node.adopt_children()
        return node

    async def _open_log(self) -> None:
        """Find the end of the log; raises BlockError."""
        options = self.options
        if options.log_append:
            if options.log_sector_size is not UNSET:
                raise BlockError("log-append and log-sector-size are mutually exclusive")
            await self._open_old_log()
        elif options.log_sector_size is not UNSET:
            self._sector_size = options.log_sector_size
        if not is_sector_size(self._sector_size):
            raise BlockError(f"Invalid log sector size {self._sector_size}")
        if not options.log_super_update_interval:
            raise BlockError("Invalid log superblock update interval 0")

    async def _open_old_log(self) -> None:
        if not self._log.node.size:
            return
        head = LogSuper.unpack(
            await self._read_log(0, SUPER_BYTES, "Could not read log superblock")
        )
        if head.magic != MAGIC:
            raise BlockError("Invalid log superblock magic")
        if head.version != VERSION:
            raise BlockError(f"Unsupported log version {head.version}")
        self._sector_size = head.sector_size
        if is_sector_size(head.sector_size):
            self._next_sector = await self._find_end(head)
            self._entries = self._entries_in_super = head.entries

    async def _find_end(self, head: LogSuper) -> int:
        """Return the sector after the last entry. The content of the log is not trusted."""
        sector, end = 1, -(-self._log.node.size // head.sector_size)
        for index in range(head.entries):
            if sector >= end:
                raise BlockError(f"Log entry {index} is past the end of the log")
            data = await self._read_log(
                sector * head.sector_size, ENTRY_BYTES, f"Failed to read log entry {index}"
            )
            entry = LogEntry.unpack(data)
            if entry.flags & ~ALL_FLAGS:
                raise BlockError(f"Invalid flags 0x{entry.flags:x} in log entry {index}")
            sector += entry.length
        return sector

    async def _read_log(self, offset: int, length: int, what: str) -> bytes:
        iov = shaping.allocate(length)
        with errors_as(BlockError, what):
            await self._log.preadv(offset, iov)
        return iov.to_bytes()

    def refresh_limits(self) -> None:
        super().refresh_limits()
        self.limits = replace(self.limits, request_alignment=self._sector_size)

    @property
    def only_in_memory(self) -> str:
        return "" if self.options.log_append else "the end of its log"

    @property
    def counts_writes(self) -> bool:
        return True  # each flush with effect gets an entry

    def child_permissions(self, role: str, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        if role != "log":
            return perm, shared
        if not self.read_only:
            perm |= Perm.WRITE | Perm.RESIZE
        return perm | Perm.CONSISTENT_READ, shared & ~(Perm.WRITE | Perm.RESIZE)

    @property
    def strong_options(self) -> dict[str, Any]:
        options = self.options
        given: dict[str, Any] = {"log-append": True} if options.log_append else {}
        if options.log_sector_size is not UNSET:
            given["log-sector-size"] = options.log_sector_size
        return given

    # I/O.

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        entry = self._entry(offset, iov.nbytes)
        await self._do(self._file.pwritev(offset, iov, flags), entry, iov)

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        entry = self._entry(offset, length)
        await self._do(self._file.pwrite_zeroes(offset, length, flags), entry)

    async def pdiscard(self, offset: int, length: int) -> None:
        entry = self._entry(offset, length, LogFlag.DISCARD)
        await self._do(self._file.pdiscard(offset, length), entry)

    async def flush(self) -> None:
        await self._do(self._file.flush(), self._entry(0, 0, LogFlag.FLUSH))

    def _entry(self, offset: int, length: int, flags: int = 0) -> LogEntry:
        return LogEntry(offset // self._sector_size, length // self._sector_size, flags)

    async def _do(
        self, on_file: Coroutine[Any, Any, None], entry: LogEntry, data: IoVec | None = None
    ) -> None:
        """Do a request to the file, and log it even if it fails."""
        try:
            await on_file
        finally:
            await self._append(entry, data)

    async def _append(self, entry: LogEntry, data: IoVec | None) -> None:
        """Append an entry and its data to the log; without data, a write logs zeroes."""
        size = self._sector_size
        start = self._next_sector
        self._next_sector += entry.length
        self._entries += 1
        number = self._entries
        iov = shaping.allocate(size)
        iov.copy_from(entry.pack(size))
        if data is not None:
            iov = iov.concat([iov, data])
        await self._log.pwritev(start * size, iov)
        if data is None and entry.length > 1:
            await self._log.pwrite_zeroes((start + 1) * size, (entry.length - 1) * size)
        if entry.flags & LogFlag.FLUSH or not number % self.options.log_super_update_interval:
            await self._update_super(number)

    async def _update_super(self, number: int) -> None:
        """Update the superblock to count entry `number`, and flush it. One update at a time."""
        while self._updating_super:
            turn: Completion[None] = Completion()
            self._waiting.append(turn)
            await turn
        if self._entries_in_super >= number:
            return  # done by another update
        self._updating_super = True
        try:
            entries = self._entries
            iov = shaping.allocate(self._sector_size)
            iov.copy_from(LogSuper(MAGIC, VERSION, entries, self._sector_size).pack())
            await self._log.pwritev(0, iov)
            await self._log.flush()
            self._entries_in_super = entries
        finally:
            self._updating_super = False
            waiting, self._waiting = self._waiting, []
            for turn in waiting:
                turn.set_result(None)

    async def close(self) -> None:
        if self.read_only or self.write_generation == self.flushed_generation:
            return
        try:
            await flush_node(self)
        except OSError as error:
            logger.error("%s: the last flush failed: %s", self.node_name, reason(error))

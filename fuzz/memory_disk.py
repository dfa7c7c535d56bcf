# SPDX-License-Identifier: Apache-2.0
"""A file in memory, sparse and bounded, that stands in for protocol drivers while a fuzzer runs."""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar, Self

from vhostblk.block.graph.filename import ProtocolDriver
from vhostblk.block.graph.node import BlockNode, BlockStatus, Extent
from vhostblk.block.io.flags import WriteFlags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.io.iovec import IoVec

PAGE = 1 << 12

#: No file of the fuzzers is longer; what writes behind it gets ENOSPC, as on a small disk.
MAX_SIZE = 1 << 26


class MemoryDisk(BlockNode, ProtocolDriver):
    """Bytes in memory by the name of the node: `files[node_name]`, else an empty file."""

    driver = "null-co"
    files: ClassVar[dict[str, tuple[int, dict[int, bytearray]]]] = {}

    def __init__(self, node_name: str, options: Any) -> None:
        super().__init__(node_name, options)
        self.read_only = options.read_only
        self._size, self._pages = self.files.get(node_name, (0, {}))

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        return cls(node_name, options)

    @classmethod
    def options_of(cls, rest: str, *, prefixed: bool) -> dict[str, Any]:
        return {} if rest == "//" else {"filename": rest}

    def exact_name(self, below: Mapping[str, str | None]) -> str | None:
        return None

    @property
    def size(self) -> int:
        return self._size

    @property
    def grows_with_zeroes(self) -> bool:
        return True

    async def preadv(self, offset: int, iov: IoVec) -> None:
        parts = []
        end = offset + iov.nbytes
        while offset < end:
            number, inside = divmod(offset, PAGE)
            length = min(PAGE - inside, end - offset)
            page = self._pages.get(number)
            parts.append(bytes(length) if page is None else page[inside : inside + length])
            offset += length
        iov.copy_from(b"".join(parts))

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        self._store(offset, iov.to_bytes())

    def _store(self, offset: int, data: bytes) -> None:
        if offset + len(data) > MAX_SIZE:
            raise OSError(errno.ENOSPC, "No space left on device")
        store(self._pages, offset, data)
        self._size = max(self._size, offset + len(data))

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        self._store(offset, bytes(length))

    async def pdiscard(self, offset: int, length: int) -> None:
        for number in range(-(-offset // PAGE), (offset + length) // PAGE):
            self._pages.pop(number, None)

    async def truncate(self, size: int) -> None:
        if size > MAX_SIZE:
            raise OSError(errno.ENOSPC, "No space left on device")
        for number in [number for number in self._pages if number * PAGE >= size]:
            del self._pages[number]
        self._size = size

    async def block_status(self, offset: int, length: int) -> Extent:
        status = BlockStatus.DATA | BlockStatus.OFFSET_VALID
        return Extent(length, status, offset, self)


def store(pages: dict[int, bytearray], offset: int, data: bytes) -> None:
    """Put bytes into the pages of a file."""
    position = 0
    while position < len(data):
        number, inside = divmod(offset + position, PAGE)
        piece = data[position : position + PAGE - inside]
        page = pages.setdefault(number, bytearray(PAGE))
        page[inside : inside + len(piece)] = piece
        position += len(piece)

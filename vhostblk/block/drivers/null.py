# SPDX-License-Identifier: Apache-2.0
"""`null-co` and `null-aio`: disks without storage, for measurements and tests.

Writes are dropped. Reads leave the memory unchanged, unless `read-zeroes` is set. With
`x-vhostblk-zoned` the disks are zoned, with write pointers in memory.
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from vhostblk.block.drivers.null_zones import NullZones, make_zones
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.filename import ProtocolDriver
from vhostblk.block.graph.in_memory import KeptInMemory
from vhostblk.block.graph.node import BlockNode, BlockStatus, Extent
from vhostblk.block.io.completion import Completion
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.zones import Zoned
from vhostblk.engine.extents import ExtentKind, ExtentMap, Treatment
from vhostblk.schema.base import UNSET

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.block.zones import EmulatedZones


class NullNode(BlockNode, ProtocolDriver, KeptInMemory):
    """A disk that accepts all requests and stores nothing."""

    driver = "null-co"
    reopens = True

    def __init__(self, node_name: str, options: Any, zones: EmulatedZones | None = None) -> None:
        super().__init__(node_name, options)
        self._zones = zones
        self.read_only = options.read_only
        self.native_flags = WriteFlags.FUA | WriteFlags.MAY_UNMAP  # they have no effect
        self._size: int = options.size
        self._latency = options.latency_ns / 1e9
        if not self._latency and self.driver == "null-co" and zones is None:
            self.pwritev = self._pwritev_at_once  # type: ignore[method-assign]
            if not options.read_zeroes:
                self.preadv = self._preadv_at_once  # type: ignore[method-assign]

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        if options.size < 0:
            raise BlockError("size is invalid: it must not be negative")
        if not 0 <= options.latency_ns < 1 << 63:
            raise BlockError("latency-ns is invalid")
        zoned = options.x_vhostblk_zoned
        zones = None if zoned is UNSET else make_zones(zoned, options.size)
        return cls(node_name, options, zones)

    @property
    def size(self) -> int:
        return self._size

    @property
    def grows_by_writing(self) -> bool:
        return self._zones is None

    def written_past_end(self, size: int) -> None:
        self._size = max(self._size, size)

    @property
    def allocated_size(self) -> int | None:
        return 0

    @property
    def strong_options(self) -> dict[str, Any]:
        given = {"size": self._size} if self._size != 1 << 30 else {}
        return {**given, "read-zeroes": True} if self.options.read_zeroes else given

    def exact_name(self, below: Mapping[str, str | None]) -> str | None:
        return None if self.strong_options else f"{self.driver}://"

    @classmethod
    def options_of(cls, rest: str, *, prefixed: bool) -> dict[str, Any]:
        if rest != "//":
            raise BlockError(f"The only allowed filename for this driver is '{cls.driver}://'")
        return {}

    async def _wait(self) -> None:
        if self._latency:
            await asyncio.sleep(self._latency)

    async def preadv(self, offset: int, iov: IoVec) -> None:
        if self._zones is not None:
            self._zones.check_read(offset, iov.nbytes)
        await self._wait()
        if self.options.read_zeroes:
            iov.fill(0)

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        await self.pwrite_zeroes(offset, iov.nbytes, flags)

    async def _preadv_at_once(self, offset: int, iov: IoVec) -> None:
        pass

    async def _pwritev_at_once(
        self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        pass

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        if self._zones is not None:
            self._zones.write(offset, length)
        await self._wait()

    async def pdiscard(self, offset: int, length: int) -> None:
        await self._wait()

    async def flush(self) -> None:
        await self._wait()

    def capability(self, kind: type) -> Any:
        if kind is Zoned and self._zones is not None:
            return NullZones(self._zones, self._wait)
        return super().capability(kind)

    @property
    def only_in_memory(self) -> str:
        return "" if self._zones is None else "its zones"

    def extent_map(self) -> ExtentMap | None:
        if self._latency or self.driver != "null-co" or self._zones is not None:
            return None
        return ExtentMap(
            ExtentKind.NULL,
            self._size,
            writable=not self.read_only,
            read_zeroes=self.options.read_zeroes,
            flush=Treatment.IGNORE,
            discard=Treatment.IGNORE,
        )

    async def block_status(self, offset: int, length: int) -> Extent:
        status = BlockStatus.OFFSET_VALID
        if self.options.read_zeroes:
            status |= BlockStatus.ZERO
        return Extent(length, status, offset, self)


class NullAioNode(NullNode):
    """Like `null-co`, but requests complete from the event loop."""

    driver = "null-aio"

    async def _wait(self) -> None:
        if self._latency:
            await asyncio.sleep(self._latency)
            return
        done: Completion[None] = Completion()
        asyncio.get_running_loop().call_soon(done.set_result, None)
        await done

# SPDX-License-Identifier: Apache-2.0
"""`blkverify`: sends requests to a driver under test and to a copy, and exits if they differ.

A read returns the data of the driver under test. Both reads go to private buffers: otherwise a
guest could change the memory in between and make the process exit.
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from msgspec.structs import replace

from vhostblk.block.errors import BlockError
from vhostblk.block.graph.filename import ProtocolDriver, described
from vhostblk.block.graph.filter import FilterNode
from vhostblk.block.graph.inherit import FILE
from vhostblk.block.graph.node import BlockNode
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io import shaping
from vhostblk.block.io.completion import outcomes
from vhostblk.block.io.flags import WriteFlags
from vhostblk.errors import os_error
from vhostblk.fatal import end_process

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.io.iovec import IoVec


class BlkverifyNode(FilterNode, ProtocolDriver):
    """A filter over the copy; the driver under test is another child."""

    driver = "blkverify"
    primary_role = "raw"
    reopens = False

    def __init__(self, node_name: str, options: Any) -> None:
        super().__init__(node_name, options)
        self.native_flags = WriteFlags.NONE
        self._test: Edge

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        node = cls(node_name, options)
        await graph.open_child(node, "raw", options.raw)
        await graph.open_child(node, "test", options.test)
        node._test = node.children["test"]
        node.adopt_children()
        return node

    def refresh_limits(self) -> None:
        super().refresh_limits()
        self.limits = replace(self.limits, max_transfer=shaping.BOUNCE_BYTES)

    def child_permissions(self, role: str, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        if role == "test":
            if perm & Perm.WRITE_UNCHANGED:
                perm |= Perm.WRITE
            if perm & Perm.WRITE:
                perm |= Perm.RESIZE
            shared &= ~Perm.RESIZE
        return perm, shared

    @property
    def size(self) -> int:
        return self._test.node.size

    @property
    def exact_size(self) -> int:
        return self._test.node.exact_size

    @property
    def grows_by_writing(self) -> bool:
        return self._test.node.grows_by_writing and self._file.node.grows_by_writing

    @property
    def allocated_size(self) -> int | None:
        return None

    def exact_name(self, below: Mapping[str, str | None]) -> str | None:
        raw, test = below["raw"], below["test"]
        return None if raw is None or test is None else f"blkverify:{raw}:{test}"

    @classmethod
    def options_of(cls, rest: str, *, prefixed: bool) -> dict[str, Any]:
        raw, colon, test = rest.partition(":")
        if not prefixed or not colon:
            raise BlockError("blkverify requires raw copy and original image path")
        return {"raw": described(raw), "test": {FILE: described(test)}}

    async def preadv(self, offset: int, iov: IoVec) -> None:
        test, raw = shaping.allocate(iov.nbytes), shaping.allocate(iov.nbytes)
        what = f"read offset={offset} bytes={iov.nbytes}"
        await _both(what, self._test.preadv(offset, test), self._file.preadv(offset, raw))
        if (at := first_difference(test.to_bytes(), raw.to_bytes())) is not None:
            end_process(f"blkverify: {what} contents mismatch at offset {offset + at}")
        test.copy_to(iov)

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        data = shaping.allocate(iov.nbytes)
        iov.copy_to(data)  # both must write the same data
        what = f"write offset={offset} bytes={iov.nbytes}"
        await _both(what, self._test.pwritev(offset, data), self._file.pwritev(offset, data))

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        await BlockNode.pwrite_zeroes(self, offset, length, flags)  # not supported

    async def pdiscard(self, offset: int, length: int) -> None:
        await BlockNode.pdiscard(self, offset, length)  # not supported

    async def flush(self) -> None:
        await self._test.flush()
        await self._file.flush()


async def _both(what: str, on_test: Any, on_raw: Any) -> None:
    """Do a request on both children; raises OSError if both fail with the same error."""
    test, raw = await outcomes([on_test, on_raw])
    codes = [-(error.errno or 0) if error is not None else 0 for error in (test, raw)]
    if codes[0] != codes[1]:
        end_process(f"blkverify: {what} return value mismatch {codes[0]} != {codes[1]}")
    if test is not None:
        raise os_error(-codes[0])


def first_difference(one: bytes, other: bytes) -> int | None:
    """Return the first offset at which two byte strings of the same length differ."""
    if one == other:
        return None
    return next(index for index, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)

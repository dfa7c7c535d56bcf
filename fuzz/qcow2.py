# SPDX-License-Identifier: Apache-2.0
"""Fuzzes the qcow2 driver: `python -m fuzz qcow2 CORPUS`.

An input says how an image is opened, what is done with it, and what it holds. Images are mostly
holes, so an input has only what is not zero: see `encode`, which makes one of an image.

Whatever an image says, opening it fails with one BlockError, or requests with an OSError. Nothing
else may be raised, then or in the background, and time and memory are bounded (libFuzzer's
`-timeout` and `-rss_limit_mb`). An image that was whole when it was opened must be so at the end,
and say what was written to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import pkgutil
from struct import Struct
from typing import TYPE_CHECKING, Any
from unittest import mock

from fuzz.harness import Harness
from fuzz.memory_disk import MemoryDisk, store
from vhostblk.block.drivers import qcow2 as package
from vhostblk.block.drivers.qcow2.check import check
from vhostblk.block.drivers.qcow2.layout import Incompatible
from vhostblk.block.drivers.qcow2.node import Qcow2Node
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.iovec import IoVec
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.convert import from_json
from vhostblk.schema.driver_manifest import DRIVERS

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How the image is opened, length of the script, length of the file; then script, then segments.
_HEAD = Struct("<BBI")
#: Offset and length of a segment of the file, its bytes after it.
_SEGMENT = Struct("<IH")
#: What to do, where (in 256ths of the disk), what exactly.
_STEP = Struct("BBB")

#: Longest file to begin with, and most steps of a script.
_MAX_FILE = 8 << 20
_MAX_STEPS = 24

_WRITABLE, _LAZY, _DISCARD, _NO_OVERLAP, _SMALL_CACHE, _NO_UNREF = (1 << bit for bit in range(6))

#: Images may name files; none of them is to be touched.
_STORAGE = {
    name: DRIVERS[name]._replace(node="fuzz.memory_disk:MemoryDisk")
    for name in ("file", "host_device", "null-aio", "null-co")
}

#: Runs of zeroes as long as that are left out.
_HOLE = bytes(24)

# Much of the driver is loaded when it is first used. What the fuzzer is to see has to be there now.
for _found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
    importlib.import_module(_found.name)

# The image is to blame for errors that the log tells of.
_harness = Harness(log_level=logging.CRITICAL)


def encode(image: bytes, flags: int, script: bytes) -> bytes:
    """Make an input of an image."""
    steps = min(len(script) // _STEP.size, 255)
    out = [_HEAD.pack(flags, steps, len(image)), script[: steps * _STEP.size]]
    position = 0
    while position < len(image):
        start = position + len(image[position:]) - len(image[position:].lstrip(b"\0"))
        if start == len(image):
            break
        end = image.find(_HOLE, start)
        end = min(len(image) if end < 0 else end, start + 0xFFFF)
        out += [_SEGMENT.pack(start, end - start), image[start:end]]
        position = end
    return b"".join(out)


def decode(data: bytes) -> tuple[int, list[tuple[int, int, int]], int, dict[int, bytearray]]:
    """Return flags, script, and the file: its length and its pages (see `memory_disk`)."""
    flags, steps, length = _HEAD.unpack_from(data)
    length %= _MAX_FILE + 1
    position = _HEAD.size
    script: list[tuple[int, int, int]] = []
    while len(script) < min(steps, _MAX_STEPS) and position + _STEP.size <= len(data):
        script.append(_STEP.unpack_from(data, position))
        position += _STEP.size
    pages: dict[int, bytearray] = {}
    while position + _SEGMENT.size <= len(data):
        offset, nbytes = _SEGMENT.unpack_from(data, position)
        position += _SEGMENT.size
        piece = data[position : position + nbytes][: max(length - offset, 0)]
        position += nbytes
        store(pages, offset, piece)
    return flags, script, length, pages


def one_input(data: bytes) -> None:
    """Try one input; raises what is wrong."""
    if len(data) < _HEAD.size:
        return
    flags, script, length, pages = decode(data)
    MemoryDisk.files["disk-file"] = (length, pages)
    with mock.patch.dict(DRIVERS, _STORAGE):
        _harness.run(_use(flags, script))
    _harness.check()


def _options(flags: int) -> Any:
    options: dict[str, Any] = {
        "driver": "qcow2",
        "node-name": "disk",
        "backing": None,
        "file": {"driver": "null-co", "node-name": "disk-file"},
        "read-only": not flags & _WRITABLE,
    }
    if flags & _LAZY:
        options["lazy-refcounts"] = True
    if flags & _DISCARD:
        options |= {"discard": "unmap", "pass-discard-other": True}
    if flags & _NO_OVERLAP:
        options["overlap-check"] = "none"
    if flags & _SMALL_CACHE:
        options["l2-cache-size"] = 0
    if flags & _NO_UNREF:
        options["discard-no-unref"] = True
    return from_json(BlockdevOptions, options)


async def _use(flags: int, script: list[tuple[int, int, int]]) -> None:
    graph = Graph()
    try:
        try:
            node = await graph.add(_options(flags))
        except BlockError as error:
            if "\n" in str(error):
                raise AssertionError(f"not one line: {error}") from error
            return
        assert isinstance(node, Qcow2Node)
        perm = Perm.CONSISTENT_READ
        if flags & _WRITABLE:
            perm |= Perm.WRITE | Perm.RESIZE
        backend = BlockBackend("fuzz", perm)
        backend.attach(graph, node)
        try:
            await _Script(node, backend).run(script)
        finally:
            await backend.detach()
    finally:
        await graph.close()


class _Script:
    """What is done with an image."""

    def __init__(self, node: Qcow2Node, backend: BlockBackend) -> None:
        self._node, self._backend = node, backend
        self._written: dict[int, bytes] = {}
        #: The image was whole at first: what it says can be relied on.
        self._whole = False

    async def run(self, script: list[tuple[int, int, int]]) -> None:
        """Take every step; those that fail in an orderly way are passed over."""
        self._whole = await self._is_whole()
        for number, (kind, place, what) in enumerate(script):
            with _orderly():
                await self._step(kind, place, what, number)
        image = self._node._image
        if self._whole and not image.unusable:
            with _orderly():
                await self._node.flush()
                lazy = image.header.incompatible & Incompatible.DIRTY
                if not lazy and not await self._is_whole():
                    raise AssertionError("the image is no longer whole")
            for offset, data in self._written.items():
                if offset + len(data) <= self._node.size:
                    with _orderly():
                        found = await self._read(offset, len(data))
                        if found != data:
                            raise AssertionError(f"wrong data at {offset}")

    async def _is_whole(self) -> bool:
        """Check the image, where it is small enough for that."""
        image = self._node._image
        bad = image.header.incompatible & (Incompatible.DIRTY | Incompatible.CORRUPT)
        if image.unusable or bad or len(image.tables.l1) > 64:
            return False
        try:
            async with image.lock:
                if image.commit.dirty:
                    await image.commit.write()
                result = await check(image, repair=False)
        except (BlockError, OSError):
            return False
        return not result.corruptions

    async def _read(self, offset: int, length: int) -> bytes:
        iov = IoVec.allocate(length)
        iov.fill(0xEE)
        await self._backend.preadv(offset, iov)
        return iov.to_bytes()

    async def _step(self, kind: int, place: int, what: int, number: int) -> None:
        size = self._node.size
        length = (1, 511, 512, 4096, 10_000, 65_536, 70_000, 300_000)[what & 7]
        offset = min(size * place // 256 + (what >> 3) * 512, size)
        length = min(length, size - offset)
        match kind & 15:
            case 0 | 1 | 2 if length:
                await self._read(offset, length)
            case 3 | 4 | 5 | 6 if length:
                await self._write(offset, bytes([number + 1]) * length)
            case 7 if length:
                self._forget(offset, length)
                flags = WriteFlags.MAY_UNMAP if what & 8 else WriteFlags.NONE
                await self._backend.pwrite_zeroes(offset, length, flags)
            case 8 if length:
                self._forget(offset, length)
                await self._backend.pdiscard(offset, length)
            case 9:
                await self._backend.flush()
            case 10 if length:
                await self._node.block_status(offset, length)
            case 11:
                await self._together(offset, length, number)
            case 12:
                await self._resize(max(0, size + (place - 128) * 4096))
            case 13 | 14 if self._node.writable_image:
                await self._change_snapshots(kind & 15 == 13, what, number)
            case _:
                _ = self._node.image_details

    async def _write(self, offset: int, data: bytes) -> None:
        self._forget(offset, len(data))
        await self._backend.pwritev(offset, IoVec.from_buffers([bytearray(data)]))
        self._written[offset] = data

    async def _together(self, offset: int, length: int, number: int) -> None:
        """Have several requests at work at once."""
        if not length:
            return
        requests = [
            self._write(offset, bytes([number + 100]) * length),
            self._read(0, min(self._node.size, 4096)),
            self._read(offset, length),
            self._backend.flush(),
        ]
        for result in await asyncio.gather(*requests, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, OSError):
                raise result

    async def _resize(self, size: int) -> None:
        self._written = {at: data for at, data in self._written.items() if at + len(data) <= size}
        await self._node.children["file"].flush()
        await self._backend.truncate(size)

    async def _change_snapshots(self, create: bool, what: int, number: int) -> None:
        """Make or delete one; what fails half-way leaves refcounts that are too high."""
        whole, self._whole = self._whole, False
        snapshots = self._node.snapshots()
        if create:
            await self._node.create_snapshot(f"s{number}")
        elif snapshots:
            chosen = snapshots[what % len(snapshots)].id.decode(errors="surrogateescape")
            await self._node.delete_snapshot(id=chosen)
        self._whole = whole

    def _forget(self, offset: int, length: int) -> None:
        """Expect nothing of what these bytes overlap."""
        self._written = {
            at: data
            for at, data in self._written.items()
            if at + len(data) <= offset or offset + length <= at
        }


@contextlib.contextmanager
def _orderly() -> Iterator[None]:
    """Let requests and changes fail as they may."""
    with contextlib.suppress(BlockError, OSError):
        yield

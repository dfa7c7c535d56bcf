# SPDX-License-Identifier: Apache-2.0
"""Writes and zeroes with the write cache off are on stable storage when they complete.

The storage is at the bottom; nodes above it must pass the flag on.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import RW, MemoryNode, fails_with, options, run, write_bytes
from tests.filters.drivers import register
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.node import BlockLimits
from vhostblk.block.io.flags import WriteFlags
from vhostblk.schema.throttle import UNLIMITED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SIZE = 64 << 10
OLD = b"\x55" * SIZE


class Storage(MemoryNode):
    """A disk with a cache; `stable` is what has been flushed."""

    def __init__(self, name: str, align: int = 1) -> None:
        super().__init__(SIZE, BlockLimits(request_alignment=align), discard="unmap")
        self.node_name = name
        self.data[:] = OLD
        self.stable = OLD

    async def flush(self) -> None:
        complete = bytes(self.data)
        await asyncio.sleep(0)
        self.stable = complete


#: By case: the options of nodes above the storage "a", and the storage that must be stable.
STACKS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, ["a"]),
    "raw": ({"driver": "raw", "file": "a"}, ["a"]),
    "window": ({"driver": "raw", "file": "a", "offset": 512, "size": SIZE - 1024}, ["a"]),
    "raw on raw": ({"driver": "raw", "file": {"driver": "raw", "file": "a"}}, ["a"]),
    "copy-on-read": ({"driver": "copy-on-read", "file": "a"}, ["a"]),
    "copy-before-write": ({"driver": "copy-before-write", "file": "a", "target": "b"}, ["a"]),
    "preallocate": ({"driver": "preallocate", "file": "a"}, ["a"]),
    "blkdebug": ({"driver": "blkdebug", "image": "a"}, ["a"]),
    "raw on blkdebug": ({"driver": "raw", "file": {"driver": "blkdebug", "image": "a"}}, ["a"]),
    "blkdebug's limits": (
        {"driver": "blkdebug", "image": "a", "align": 4096, "max-transfer": 8192},
        ["a"],
    ),
    "blklogwrites": ({"driver": "blklogwrites", "file": "a", "log": "log"}, ["a"]),
    "blkverify": ({"driver": "blkverify", "test": "a", "raw": "b"}, ["a", "b"]),
    "quorum": ({"driver": "quorum", "children": ["a", "b"], "vote-threshold": 2}, ["a", "b"]),
    "throttle": ({"driver": "throttle", "file": "a", "throttle-group": "group"}, ["a"]),
    "all": (
        {
            "driver": "copy-on-read",
            "file": {
                "driver": "throttle",
                "throttle-group": "group",
                "file": {"driver": "raw", "file": {"driver": "preallocate", "file": "a"}},
            },
        },
        ["a"],
    ),
}
STACKS |= {
    f"{name}, zeroes found": ({**stack, "detect-zeroes": "unmap"}, storage)
    for name, (stack, storage) in STACKS.items()
    if stack
}


def _zero(*flags: WriteFlags) -> Callable[[BlockBackend, int, int], Awaitable[None]]:
    async def zero(user: BlockBackend, offset: int, length: int) -> None:
        await user.pwrite_zeroes(offset, length, sum(flags, WriteFlags.NONE))

    return zero


async def _write(user: BlockBackend, offset: int, length: int) -> None:
    await write_bytes(user, offset, bytes(length))


CHANGES = {
    "write": _write,
    "zeroes": _zero(),
    "unmap": _zero(WriteFlags.MAY_UNMAP),
    "fua": _zero(WriteFlags.FUA),
}


@pytest.fixture(autouse=True)
def drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


async def _attach(graph: Graph, name: str, align: int) -> tuple[BlockBackend, list[Storage]]:
    """Make a stack; return its user, and the storage."""
    storage = {each: Storage(each, align) for each in ("a", "b", "log")}
    graph._nodes.update(storage)
    storage["b"].data[:] = storage["a"].data
    graph.throttle_groups.add("group", UNLIMITED)
    stack, bottom = STACKS[name]
    node = await graph.add(options(node_name="top", discard="unmap", **stack)) if stack else None
    user = BlockBackend("user", RW)
    user.attach(graph, node or storage["a"])
    user.enable_write_cache = False
    return user, [storage[each] for each in bottom]


@pytest.mark.parametrize("align", [1, 512])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("stack", STACKS)
def test_what_has_completed_is_stored(stack: str, change: str, align: int) -> None:
    async def main() -> None:
        graph = Graph()
        user, bottom = await _attach(graph, stack, align)
        shift = 512 if "window" in stack else 0
        for offset, length in ((0, 8192), (12288, 512), (16384, 24576), (45056, 4096)):
            await CHANGES[change](user, offset, length)
            for storage in bottom:
                part = storage.stable[offset + shift : offset + length + shift]
                assert part == bytes(length), (offset, storage.node_name)
                assert storage.stable[offset + length + shift] == OLD[0]
        await user.detach()
        await graph.close()
        graph.throttle_groups.close()

    run(main)


@pytest.mark.parametrize("stack", STACKS)
def test_what_cannot_be_stored_fails(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_storage: Storage) -> None:
        raise OSError(errno.EIO, "injected")

    async def main() -> None:
        graph = Graph()
        user, _ = await _attach(graph, stack, 1)
        monkeypatch.setattr(Storage, "flush", fail)
        for change in CHANGES.values():
            with fails_with(errno.EIO):
                await change(user, 4096, 4096)
        user.enable_write_cache = True
        await write_bytes(user, 0, b"x")
        await user.detach()
        await graph.close()
        graph.throttle_groups.close()

    run(main)

# SPDX-License-Identifier: Apache-2.0
"""The drivers of `benchmarks.plugin`: the same disk as coroutines and as plain methods."""

from __future__ import annotations

from vhostblk import plugin

#: A period of 1 MiB, and room for the longest request behind it.
DATA = bytes(range(256)) * 8192
MASK = (1 << 20) - 1


class BenchOptions(plugin.Options, tag="bench", frozen=True):
    """A disk of a fixed pattern, which forgets writes."""

    size: plugin.Size = 1 << 30


class BenchSyncOptions(BenchOptions, tag="bench-sync", frozen=True):
    """The same."""


class Bench(plugin.Driver[BenchOptions]):
    """With coroutines."""

    options_type = BenchOptions

    def size(self) -> int:
        """Return the length."""
        return self.options.size

    async def read(self, offset: int, length: int) -> bytes:
        """Return a piece of the pattern."""
        start = offset & MASK
        return DATA[start : start + length]

    async def write(self, offset: int, data: bytes) -> None:
        """Forget."""


class BenchSync(plugin.SyncDriver[BenchSyncOptions]):
    """In a thread."""

    options_type = BenchSyncOptions

    def size(self) -> int:
        """Return the length."""
        return self.options.size

    def read(self, offset: int, length: int) -> bytes:
        """Return a piece of the pattern."""
        start = offset & MASK
        return DATA[start : start + length]

    def write(self, offset: int, data: bytes) -> None:
        """Forget."""

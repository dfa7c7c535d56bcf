# SPDX-License-Identifier: Apache-2.0
"""A disk over a key-value store, as an object store is one: an example of a vhostblk driver.

Block n of the disk is the value of the key n; what has no key reads as zeroes. So zeroing and
discarding delete keys. The store is a table in SQLite here; whatever has get, put, delete and a
commit would do. Nothing is on stable storage before a flush, which commits; a crash loses what came
after the last one, never a part of what came before.
"""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

from vhostblk import plugin

_MAX_BLOCK = 1 << 20


class Store:
    """Values by number in a file; the open transaction holds what has not been committed."""

    def __init__(self, filename: str, *, read_only: bool) -> None:
        mode = "ro" if read_only else "rwc"
        uri = f"{Path(filename).absolute().as_uri()}?mode={mode}"
        self._database = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=0)
        try:
            if not read_only:
                # Nobody else writes, or reads what has not been committed.
                self._run("PRAGMA locking_mode = EXCLUSIVE")
                self._run("PRAGMA synchronous = FULL")
                self._run("BEGIN EXCLUSIVE")
                self._run("CREATE TABLE IF NOT EXISTS property (name TEXT PRIMARY KEY, value)")
                self._run("CREATE TABLE IF NOT EXISTS block (key INTEGER PRIMARY KEY, value BLOB)")
            self.properties: dict[str, int] = dict(self._run("SELECT name, value FROM property"))
        except BaseException:
            self._database.close()
            raise

    def _run(self, statement: str, *values: object) -> sqlite3.Cursor:
        return self._database.execute(statement, values)

    def set_property(self, name: str, value: int) -> None:
        self._run("REPLACE INTO property VALUES (?, ?)", name, value)
        self.properties[name] = value

    def get(self, first: int, last: int) -> dict[int, bytes]:
        """Return what there is among these keys."""
        return dict(
            self._run("SELECT key, value FROM block WHERE key BETWEEN ? AND ?", first, last)
        )

    def put(self, values: list[tuple[int, memoryview]]) -> None:
        self._database.executemany("REPLACE INTO block VALUES (?, ?)", values)

    def delete(self, first: int, last: int) -> None:
        self._run("DELETE FROM block WHERE key BETWEEN ? AND ?", first, last)

    def next_key(self, key: int) -> int | None:
        """Return the first key from `key` on."""
        found: int | None = self._run("SELECT MIN(key) FROM block WHERE key >= ?", key).fetchone()[
            0
        ]
        return found

    def commit(self) -> None:
        """Put everything on stable storage, and go on."""
        self._run("COMMIT")
        self._run("BEGIN EXCLUSIVE")

    def close(self) -> None:
        if self._database.in_transaction:
            self._run("ROLLBACK")
        self._database.close()


class KeyValueOptions(plugin.Options, tag="key-value", frozen=True):
    """`--blockdev key-value,node-name=…,filename=…,size=…`; the sizes are needed once."""

    filename: str
    size: plugin.Size | plugin.UnsetType = plugin.UNSET
    block_size: plugin.Size | plugin.UnsetType = plugin.UNSET


class KeyValueDriver(plugin.SyncDriver[KeyValueOptions]):
    """Requests are whole blocks: the layer above does the rest."""

    options_type = KeyValueOptions

    def open(self) -> None:
        name = self.options.filename
        try:
            self._store = Store(name, read_only=self.read_only)
        except sqlite3.Error as error:
            raise plugin.DriverError(f"Could not open '{name}': {error}") from error
        try:
            self._check()
            if not self.read_only:
                self._store.commit()
        except BaseException:
            self._store.close()
            raise
        self._size = self._store.properties["size"]
        self._block = self._store.properties["block-size"]
        self.request_alignment = self.discard_granularity = self._block
        self.optimal_transfer = self._block

    def _check(self) -> None:
        """Hold what was asked for against what is stored; a new store takes it over."""
        wanted = {"size": self.options.size, "block-size": self.options.block_size}
        stored = self._store.properties
        if not stored:
            if wanted["size"] is plugin.UNSET:
                raise plugin.DriverError("A new store needs a 'size'")
            block = 4096 if wanted["block-size"] is plugin.UNSET else wanted["block-size"]
            self._check_new(wanted["size"], block)
            self._store.set_property("size", wanted["size"])
            self._store.set_property("block-size", block)
        for name, value in wanted.items():
            if value is not plugin.UNSET and value != stored[name]:
                raise plugin.DriverError(f"The store has a '{name}' of {stored[name]}, not {value}")

    def _check_new(self, size: int, block: int) -> None:
        if not 512 <= block <= _MAX_BLOCK or block & (block - 1):
            raise plugin.DriverError("'block-size' is not a power of two from 512 to 1M")
        if size % block or not 0 < size < 1 << 62:
            raise plugin.DriverError("'size' is not a multiple of the block size")

    def close(self) -> None:
        self._store.close()

    def size(self) -> int:
        return self._size

    def _keys(self, offset: int, length: int) -> tuple[int, int]:
        return offset // self._block, (offset + length) // self._block - 1

    def read(self, offset: int, length: int) -> bytes:
        first, last = self._keys(offset, length)
        values = self._store.get(first, last)
        zeroes = bytes(self._block)
        return b"".join(values.get(key, zeroes) for key in range(first, last + 1))

    def write(self, offset: int, data: bytes) -> None:
        first, last = self._keys(offset, len(data))
        view, size = memoryview(data), self._block
        parts = ((key, view[(key - first) * size :][:size]) for key in range(first, last + 1))
        self._put(list(parts))

    def _put(self, values: list[tuple[int, memoryview]]) -> None:
        try:
            self._store.put(values)
        except sqlite3.OperationalError as error:
            full = "full" in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error

    def write_zeroes(self, offset: int, length: int) -> None:
        self._store.delete(*self._keys(offset, length))

    def discard(self, offset: int, length: int) -> None:
        self._store.delete(*self._keys(offset, length))

    def flush(self) -> None:
        if not self.read_only:
            self._store.commit()

    def block_status(self, offset: int, length: int) -> plugin.Extent:
        first, last = self._keys(offset, length)
        following = self._store.next_key(first)
        if following is None or following > last:
            return plugin.Extent(length, zero=True, hole=True)
        if following > first:
            return plugin.Extent((following - first) * self._block, zero=True, hole=True)
        return plugin.Extent(self._block)

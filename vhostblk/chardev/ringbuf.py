# SPDX-License-Identifier: Apache-2.0
"""Character device that keeps the last bytes written to it in memory, until they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.chardev.base import Chardev, ChardevError

if TYPE_CHECKING:
    from vhostblk.schema.chardev import ChardevRingbuf


class RingbufChardev(Chardev):
    """`ringbuf`, and `memory`, its former name."""

    def __init__(self, label: str, options: ChardevRingbuf, name: str = "ringbuf") -> None:
        super().__init__(label)
        if options.size < 1 or options.size.bit_count() != 1:
            raise ChardevError("size of ringbuf chardev must be power of two")
        self._name = name
        self._size = options.size
        self._data = bytearray()
        self._open = True

    @property
    def filename(self) -> str:
        """The description of the device in `query-chardev`."""
        return self._name

    def _write(self, data: bytes) -> bool:
        self._data += data[-self._size :]
        del self._data[: -self._size]
        return True

    def read(self, size: int) -> bytes:
        """Remove and return the oldest bytes, at most `size`."""
        data = bytes(self._data[:size])
        del self._data[:size]
        return data

# SPDX-License-Identifier: Apache-2.0
"""`IoVec`: the scatter/gather list of all packages.

A list of memory segments in the layout of `struct iovec` (readv(2)), so that system calls and
io_uring can use it directly. It holds a reference to the owner of the memory. Segments may be in
guest memory, which can change at any time: two reads may return different data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from _cffi_backend import FFI
from msgspec import Struct

from vhostblk.engine.layouts import IOVEC

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

_ffi = FFI()
_char_p = _ffi.typeof("char *")
#: A `struct iovec` is two of these: base and length.
_size_p = _ffi.typeof("size_t *")
#: Adding an address to it costs half as much as casting.
_nowhere = _ffi.cast(_char_p, 0)


def address_of(array: NDArray[np.generic]) -> int:
    """Return the address of an array's first byte."""
    if array.dtype.names is not None:  # the interface of structured types is expensive to build
        return array.ctypes.data
    address: int = array.__array_interface__["data"][0]
    return address


def view_memory(address: int, length: int) -> memoryview:
    """Return a writable memoryview of `length` bytes at `address`; the caller keeps them mapped."""
    return memoryview(_ffi.buffer(_nowhere + address, length))


class IoVec(Struct, eq=False, gc=False):
    """Segments `first` to `first + count` of an `IOVEC` array, `nbytes` bytes altogether.

    It is a window, so that the thousands of lists in a burst can share one array. `address` is that
    of the first `struct iovec`. `owner` keeps the array and the memory alive. `only` is the address
    of the only segment, or 0 if there are several or it isn't known: looking it up takes as long as
    copying a few KiB.
    """

    _array: NDArray[np.void]
    _first: int
    count: int
    nbytes: int
    address: int
    owner: object
    only: int = 0

    @classmethod
    def from_segments(cls, array: NDArray[np.void], owner: object) -> IoVec:
        """Wrap an `IOVEC` array of shape (n,)."""
        return cls(array, 0, len(array), int(array["len"].sum()), address_of(array), owner)

    @classmethod
    def from_buffers(cls, buffers: Iterable[bytearray | memoryview]) -> IoVec:
        """Return a list of writable buffers, which stay exported (not resizable) meanwhile."""
        owners = [np.frombuffer(buffer, np.uint8) for buffer in buffers]
        array = np.zeros(len(owners), IOVEC)
        array["base"] = [address_of(owner) for owner in owners]
        array["len"] = [owner.nbytes for owner in owners]
        return cls.from_segments(array, owners)

    @classmethod
    def allocate(cls, nbytes: int, align: int = 1) -> IoVec:
        """Return one zeroed segment of `nbytes`, at an address that is a multiple of `align`."""
        memory = np.zeros(nbytes + align - 1, np.uint8)
        array = np.zeros(1, IOVEC)
        array["base"] = -(-address_of(memory) // align) * align
        array["len"] = nbytes
        return cls.from_segments(array, memory)

    @property
    def segments(self) -> NDArray[np.void]:
        """The `IOVEC` array of shape (count,); a view."""
        return self._array[self._first : self._first + self.count]

    def segment(self, index: int) -> IoVec:
        """Return one segment as a new list."""
        base, length = self._array[self._first + index].tolist()
        address = self.address + 16 * index
        return IoVec(self._array, self._first + index, 1, length, address, self.owner, base)

    def segments_from(self, low: int, high: int) -> IoVec:
        """Return segments [low, high) as a new list."""
        nbytes = int(self.segments["len"][low:high].sum())
        address = self.address + 16 * low
        return IoVec(self._array, self._first + low, high - low, nbytes, address, self.owner)

    def slice(self, start: int, stop: int) -> IoVec:
        """Return bytes [start, stop) as a new list; the data is not copied.

        Raises ValueError if the range is not inside [0, nbytes].
        """
        if not 0 <= start <= stop <= self.nbytes:
            raise ValueError(f"slice [{start}, {stop}) of {self.nbytes} bytes")
        nbytes = stop - start
        if nbytes == self.nbytes:
            return self
        words: list[int] = []
        pairs: list[tuple[int, int]] = self.segments.tolist()
        for base, length in pairs:
            if stop <= 0:
                break
            if start < length:
                low = max(start, 0)
                words += (base + low, min(stop, length) - low)
            start -= length
            stop -= length
        return self._from_words(np.array(words, np.uint64), nbytes, self.owner)

    @classmethod
    def concat(cls, parts: Sequence[IoVec]) -> IoVec:
        """Concatenate lists."""
        # numpy takes ten times as long to join arrays of records as joining bytes takes.
        joined = b"".join([_ffi.buffer(_nowhere + part.address, 16 * part.count) for part in parts])
        nbytes = sum([part.nbytes for part in parts])
        return cls._from_words(np.frombuffer(joined, np.uint64), nbytes, [p.owner for p in parts])

    @classmethod
    def _from_words(cls, words: NDArray[np.uint64], nbytes: int, owner: object) -> IoVec:
        """Return a list from an array of alternating bases and lengths."""
        count = len(words) // 2
        only = int(words[0]) if count == 1 else 0
        return cls(words.view(IOVEC), 0, count, nbytes, address_of(words), owner, only)

    def memoryviews(self) -> list[memoryview]:
        """Return the segments as writable memoryviews; valid while this IoVec lives."""
        pairs: list[tuple[int, int]] = self.segments.tolist()
        return [view_memory(base, length) for base, length in pairs]

    def aligned(self, align: int) -> bool:
        """Return whether every segment's address and length are multiples of `align`."""
        segments = self.segments
        return not bool(((segments["base"] | segments["len"]) & np.uint64(align - 1)).any())

    def is_zero(self) -> bool:
        """Return whether all bytes are zero."""
        return not any(np.frombuffer(view, np.uint8).any() for view in self.memoryviews())

    def fill(self, byte: int) -> None:
        """Set all bytes to one value."""
        for view in self.memoryviews():
            np.frombuffer(view, np.uint8)[:] = byte

    def to_bytes(self) -> bytes:
        """Return a copy of the content."""
        if self.count == 1:
            only: bytes = _ffi.buffer(self._at(), self.nbytes)[:]
            return only
        return b"".join(self.memoryviews())

    def _at(self) -> Any:
        """Return a `char *` to the only segment."""
        return _nowhere + (self.only or _ffi.cast(_size_p, self.address)[0])

    def copy_from(self, data: Buffer) -> None:
        """Copy `data` to the start; it must not be longer than this list."""
        source = data if type(data) is bytes else memoryview(data).cast("B")
        left = len(source)
        if left > self.nbytes:
            raise ValueError(f"{left} bytes into {self.nbytes}")
        if self.count == 1:
            _ffi.memmove(self._at(), source, left)
            return
        pairs = _ffi.cast(_size_p, self.address)
        source = memoryview(source)
        done = 0
        for index in range(0, 2 * self.count, 2):
            part = source[done : done + pairs[index + 1]]
            _ffi.memmove(_nowhere + pairs[index], part, len(part))
            done += len(part)

    def copy_to(self, other: IoVec) -> None:
        """Copy the content to the start of `other`."""
        if self.count == other.count == 1 and self.nbytes <= other.nbytes:
            _ffi.memmove(other._at(), self._at(), self.nbytes)
            return
        other.copy_from(self.to_bytes())

    def copy_out(self, address: int) -> None:
        """Copy the content to memory at `address`, which the caller keeps mapped."""
        if self.count == 1:
            _ffi.memmove(_nowhere + address, self._at(), self.nbytes)
            return
        for view in self.memoryviews():
            _ffi.memmove(_nowhere + address, view, len(view))
            address += len(view)

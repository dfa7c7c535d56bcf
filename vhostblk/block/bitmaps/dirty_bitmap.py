# SPDX-License-Identifier: Apache-2.0
"""`DirtyBitmap`: the parts of a disk that have changed since some point in time.

A bitmap has one bit for each granule of `1 << granularity_bits` bytes, in 64-bit words, lowest bit
first. This is the form in qcow2 images, and the one that `x-debug-block-dirty-bitmap-sha256`
hashes. Offsets, lengths and counts are in bytes. Bits past the end of the disk are never set.

Operations work on whole words. Their time depends on the bitmap's size, not on the number of bits
set.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MIN_GRANULARITY_BITS, MAX_GRANULARITY_BITS = 9, 31
#: Maximum length of a bitmap's name, in bytes.
MAX_NAME = 1023

#: Number of bits, or words, to process at once.
_CHUNK_BITS = 1 << 20
_CHUNK_WORDS = 1 << 12
_WORD = np.dtype("<u8")
_ALL = (1 << 64) - 1


@dataclass(eq=False)
class DirtyBitmap:
    """A bitmap of a disk of `size` bytes; raises MemoryError or ValueError if it is too large.

    `name` is None for internal bitmaps, which users can't refer to.
    """

    name: str | None
    granularity_bits: int
    size: int
    #: Doesn't record writes.
    disabled: bool = False
    #: Stored in the image when the image is closed.
    persistent: bool = False
    #: In use when the image was not closed properly, so its content is unknown. It can only be
    #: removed.
    inconsistent: bool = False
    #: In use by an operation. Commands may not change it.
    busy: bool = False
    #: The image is not writable, so the bitmap can't be changed.
    read_only: bool = False

    def __post_init__(self) -> None:
        #: At least one word, shape (words,). The kernel allocates pages on first use.
        self.words: NDArray[np.uint64] = np.zeros(self._word_count(), _WORD)

    @property
    def granularity(self) -> int:
        """The number of bytes for each bit."""
        return 1 << self.granularity_bits

    @property
    def granules(self) -> int:
        """The number of bits that are in use."""
        return -(-self.size >> self.granularity_bits)

    @property
    def recording(self) -> bool:
        """Whether the bitmap records writes."""
        return not self.disabled

    def _word_count(self) -> int:
        return max(-(-self.granules >> 6), 1)

    # Changes.

    def mark(self, offset: int, length: int) -> None:
        """Set the bits of bytes that have changed; bytes past the end are ignored."""
        self._put(*self._granules_of(offset, length), True)

    def unmark(self, offset: int, length: int) -> None:
        """Clear the bits of bytes; a granule is cleared if any of its bytes is."""
        self._put(*self._granules_of(offset, length), False)

    def clear(self) -> None:
        """Clear all bits."""
        self.words.fill(0)

    def _granules_of(self, offset: int, length: int) -> tuple[int, int]:
        stop = min(offset + length, self.size)
        if offset >= stop:
            return 0, 0
        return offset >> self.granularity_bits, -(-stop >> self.granularity_bits)

    def _put(self, first: int, last: int, value: bool) -> None:
        """Set or clear bits [first, last)."""
        if first >= last:
            return
        low, high = first >> 6, (last - 1) >> 6
        head, tail = _ALL << (first & 63) & _ALL, _ALL >> (63 - ((last - 1) & 63))
        if low == high:
            self._change(low, head & tail, value)
            return
        self._change(low, head, value)
        self.words[low + 1 : high] = _ALL if value else 0
        self._change(high, tail, value)

    def _change(self, index: int, mask: int, value: bool) -> None:
        word = int(self.words[index])
        self.words[index] = word | mask if value else word & ~mask

    def resize(self, size: int) -> None:
        """Change the size of the disk; the new part is clean."""
        former, granules = self.words, self.granules
        self.size = size
        if self.granules < granules:
            self._put(self.granules, granules, False)
        if self._word_count() != len(former):
            self.words = np.zeros(self._word_count(), _WORD)
            kept = min(len(former), len(self.words))
            self.words[:kept] = former[:kept]

    def merge(self, other: DirtyBitmap) -> None:
        """Set all bits that are set in another bitmap of a disk of the same size."""
        if other.granularity_bits == self.granularity_bits:
            self.words |= other.words
            return
        shift = other.granularity_bits - self.granularity_bits
        # A chunk is a whole number of bytes in both bitmaps.
        step = max(_CHUNK_BITS >> shift, 8) if shift > 0 else max(_CHUNK_BITS, 8 << -shift)
        theirs, ours = other.words.view(np.uint8), self.words.view(np.uint8)
        for first in range(0, other.granules, step):
            part = theirs[first >> 3 : (first + step) >> 3]
            if not part.any():
                continue
            bits = np.unpackbits(part, bitorder="little")
            if shift > 0:
                bits = np.repeat(bits, 1 << shift)
                start = first << shift >> 3
            else:
                padded = np.zeros(-(-len(bits) >> -shift) << -shift, np.uint8)
                padded[: len(bits)] = bits
                bits = padded.reshape(-1, 1 << -shift).max(axis=1)
                start = first >> -shift >> 3
            packed = np.packbits(bits, bitorder="little")[: len(ours) - start]
            ours[start : start + len(packed)] |= packed
        self._clip()

    def _clip(self) -> None:
        """Clear the bits past the last granule."""
        granules = self.granules
        index, used = granules >> 6, granules & 63
        if index < len(self.words):
            self._change(index, _ALL >> used << used, False)
            self.words[index + 1 :] = 0

    # Queries.

    @property
    def count(self) -> int:
        """The number of dirty bytes, in whole granules."""
        total, data = 0, self.words.view(np.uint8)
        for start in range(0, len(data), _CHUNK_WORDS * 8):
            chunk = data[start : start + _CHUNK_WORDS * 8].tobytes()
            total += int.from_bytes(chunk, "little").bit_count()
        return total << self.granularity_bits

    def is_dirty(self, offset: int) -> bool:
        """Return whether a byte is dirty."""
        granule = offset >> self.granularity_bits
        return bool(int(self.words[granule >> 6]) >> (granule & 63) & 1)

    def next_dirty(self, offset: int = 0) -> int | None:
        """Return the first dirty byte at or after `offset`."""
        return self._next(offset, True)

    def next_clean(self, offset: int = 0) -> int | None:
        """Return the first clean byte at or after `offset`."""
        return self._next(offset, False)

    def next_area(self, offset: int, stop: int, longest: int = 1 << 62) -> tuple[int, int] | None:
        """Return the first dirty run in [offset, stop), not longer than the given maximum."""
        start = self.next_dirty(offset)
        if start is None or start >= min(stop, self.size):
            return None
        end = self.next_clean(start)
        end = min(self.size if end is None else end, stop, self.size)
        return start, min(end - start, longest)

    def areas(self, offset: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield offset and length of all dirty runs."""
        end = self.size if stop is None else stop
        while (area := self.next_area(offset, end)) is not None:
            yield area
            offset = area[0] + area[1]

    def _next(self, offset: int, dirty: bool) -> int | None:
        first, granules = offset >> self.granularity_bits, self.granules
        if offset >= self.size:
            return None
        index = first >> 6
        word = int(self.words[index]) ^ (0 if dirty else _ALL)
        word = word >> (first & 63) << (first & 63)
        if not word:
            found = self._next_word(index + 1, dirty)
            if found is None:
                return None
            index, word = found
        granule = index << 6 | (word & -word).bit_length() - 1
        return None if granule >= granules else max(granule << self.granularity_bits, offset)

    def _next_word(self, index: int, dirty: bool) -> tuple[int, int] | None:
        """Return the first word with a matching bit, and the matching bits."""
        without = np.uint64(0 if dirty else _ALL)
        while index < len(self.words):
            found = np.flatnonzero(self.words[index : index + _CHUNK_WORDS] != without)
            if len(found):
                index += int(found[0])
                return index, int(self.words[index]) ^ int(without)
            index += _CHUNK_WORDS
        return None

    def granule_flags(self) -> NDArray[np.bool_]:
        """Return for each granule whether it is dirty; shape (granules,)."""
        flags = np.unpackbits(self.words.view(np.uint8), count=self.granules, bitorder="little")
        return flags.astype(np.bool_)

    def sha256(self) -> str:
        """Return the hash of all words, in hexadecimal digits."""
        return hashlib.sha256(self.words.data).hexdigest()

    # Storing, in parts of whole words (`offset` and `length` are in bytes of the bitmap itself).

    @property
    def nbytes(self) -> int:
        """The size of the stored bitmap in bytes."""
        return -(-self.granules >> 6) << 3

    def part(self, offset: int, length: int) -> NDArray[np.uint8]:
        """Return a part of the stored form; shorter at the end."""
        return self.words.view(np.uint8)[: self.nbytes][offset : offset + length]

    def load_part(self, offset: int, length: int, data: NDArray[np.uint8] | None) -> None:
        """Load a part of the stored form, or set all its bits; `finish_load` must follow."""
        mine = self.part(offset, length)
        mine[:] = 0xFF if data is None else data[: len(mine)]

    def finish_load(self) -> None:
        """Clear loaded bits past the end."""
        self._clip()

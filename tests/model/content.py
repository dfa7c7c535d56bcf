# SPDX-License-Identifier: Apache-2.0
"""The content of written sectors: each sector identifies its write and its place.

A sector is 64 words. The first one is `token << 40 | sector number`; the token is the number of the
write. The others are the same word, or noise derived from it, so that there are sectors that can be
compressed and sectors that can't. So each sector that a read returns can be classified: data of one
write in its place, zeroes, garbage that a discard has left, or other data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SECTOR = 512
_WORDS = SECTOR // 8
_SHIFT = np.uint64(40)
_SECTORS = np.uint64((1 << 40) - 1)

#: Results of `decode` for sectors that don't have the data of one write in its place.
ZERO = 0
MIXED = -1
GARBAGE = -2

#: The byte that a discard may leave.
GARBAGE_BYTE = 0xDD
_GARBAGE_WORD = np.uint64(int.from_bytes(bytes([GARBAGE_BYTE]) * 8, "little"))
#: Tokens with this remainder modulo 8 are written as noise.
_NOISE = 5

_STEPS = np.arange(_WORDS, dtype=np.uint64) * np.uint64(0x9E37_79B9_7F4A_7C15)


def _noise(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return rows of noise (splitmix64), each derived from its first word, which stays."""
    mixed = words[:, None] + _STEPS[None, :]
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58_476D_1CE4_E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D0_49BB_1331_11EB)
    mixed[:, 0] = words
    return mixed


def encode(token: int, first: int, count: int) -> bytes:
    """Return the data of write `token` for `count` sectors from `first` on; token 0: zeroes."""
    if token == ZERO:
        return bytes(count * SECTOR)
    words = np.arange(first, first + count, dtype=np.uint64) | np.uint64(token) << _SHIFT
    rows = _noise(words) if token % 8 == _NOISE else np.repeat(words, _WORDS)
    return rows.tobytes()


def decode(data: bytes | NDArray[np.uint8], first: int) -> NDArray[np.int64]:
    """Return the token of each sector, or ZERO, MIXED or GARBAGE; `first` is where it was read."""
    rows = np.frombuffer(data, np.uint64).reshape(-1, _WORDS)
    words = rows[:, 0]
    tokens = (words >> _SHIFT).astype(np.int64)
    expected = np.arange(first, first + len(rows), dtype=np.uint64)
    in_place = (words & _SECTORS) == expected
    even = (rows == words[:, None]).all(axis=1)
    noisy = in_place & (tokens % 8 == _NOISE) & ~even
    if noisy.any():
        noisy[noisy] = (rows[noisy] == _noise(words[noisy])).all(axis=1)
    plain = in_place & even & (tokens > 0) & (tokens % 8 != _NOISE)
    found = np.where(plain | noisy, tokens, MIXED)
    found[even & (words == 0)] = ZERO
    found[even & (words == _GARBAGE_WORD)] = GARBAGE
    return found


def describe(value: int) -> str:
    """Return a description of a decoded sector."""
    names = {ZERO: "zeroes", MIXED: "a mixture, or data of another place", GARBAGE: "garbage"}
    return names.get(value, f"write {value}")

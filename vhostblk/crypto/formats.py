# SPDX-License-Identifier: Apache-2.0
"""The formats of secrets: Base64, encrypted with AES-256-CBC, text.

All is done in memory that can be zeroed. Base64 is read as GLib does it, which QEMU uses: line
feeds and padding are allowed anywhere, and an incomplete group at the end is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.crypto import gnutls
from vhostblk.crypto.errors import SecretError
from vhostblk.crypto.secret_bytes import SecretBytes

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY_LENGTH = 32
BLOCK_LENGTH = 16

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_PAD = 0x3D
_INVALID = 0xFF
_IGNORED = 0xFE

_VALUES = bytearray([_INVALID] * 256)
for _value, _character in enumerate(_ALPHABET):
    _VALUES[_character] = _value
_VALUES[_PAD] = 0
_VALUES[0x0A] = _IGNORED


def decode_base64(data: memoryview) -> SecretBytes:
    """Decode Base64; raises SecretError."""
    with SecretBytes(length=len(data) // 4 * 3) as buffer, buffer.view as view:
        length = 0
        for byte in _decoded(data):
            view[length] = byte
            length += 1
        return SecretBytes(view[:length])


def _decoded(data: memoryview) -> Iterator[int]:
    bits = count = last = before = 0
    for character in data:
        value = _VALUES[character]
        if value == _INVALID:
            raise SecretError("Base64 data contains invalid characters")
        if value == _IGNORED:
            continue
        bits = bits << 6 | value
        before, last = last, character
        count += 1
        if count == 4:
            yield bits >> 16
            if before != _PAD:
                yield bits >> 8 & 0xFF
            if last != _PAD:
                yield bits & 0xFF
            bits = count = 0


def decrypt(data: memoryview, key: SecretBytes, iv: bytes | None) -> SecretBytes:
    """Decrypt AES-256-CBC and remove the padding of PKCS 7; raises SecretError.

    `iv` is Base64.
    """
    if len(key) != KEY_LENGTH:
        raise SecretError("Key should be 32 bytes in length")
    if iv is None:
        raise SecretError("IV is required to decrypt secret")
    with decode_base64(memoryview(iv)) as vector, vector.view as vector_view:
        if len(vector) != BLOCK_LENGTH:
            raise SecretError(f"IV should be 16 bytes in length not {len(vector)}")
        if len(data) % BLOCK_LENGTH:
            raise SecretError(f"Length {len(data)} must be a multiple of block size {BLOCK_LENGTH}")
        with SecretBytes(data) as plain, plain.view as view, key.view as key_view:
            gnutls.decrypt_cbc(view, key_view, vector_view)
            padding = view[-1] if view else 0
            if padding > BLOCK_LENGTH or not view:
                raise SecretError(
                    f"Incorrect number of padding bytes ({padding}) found on decrypted data"
                )
            return SecretBytes(view[: len(view) - padding])


def is_text(data: memoryview) -> bool:
    """Return whether data is UTF-8 without zero bytes. No string is made of it."""
    rest = iter(data)
    for first in rest:
        if first == 0:
            return False
        if first < 0x80:
            continue
        if 0xC2 <= first <= 0xDF:
            following, low, high = 1, 0x80, 0xBF
        elif 0xE0 <= first <= 0xEF:
            following = 2
            low, high = (0xA0 if first == 0xE0 else 0x80), (0x9F if first == 0xED else 0xBF)
        elif 0xF0 <= first <= 0xF4:
            following = 3
            low, high = (0x90 if first == 0xF0 else 0x80), (0x8F if first == 0xF4 else 0xBF)
        else:
            return False
        for _ in range(following):
            byte = next(rest, 0)
            if not low <= byte <= high:
                return False
            low, high = 0x80, 0xBF
    return True

# SPDX-License-Identifier: Apache-2.0
"""Names on FAT: up to 255 characters of UTF-16, beside a short one (8.3) that is unique.

Source: Microsoft's "FAT32 File System Specification" (fatgen103), "Long Directory Entries" and
"Rules Governing Name Creation".
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from vhostblk.plugin import DriverError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_LENGTH = 255
FORBIDDEN = re.compile(r'[\x00-\x1f"*/:<>?\\|\x7f]')
_SHORT_CHARACTER = r"[A-Z0-9!#$%&'()\-@^_`{}~]"
_SHORT = re.compile(rf"({_SHORT_CHARACTER}{{1,8}})(?:\.({_SHORT_CHARACTER}{{1,3}}))?")
_NOT_SHORT = re.compile(rf"(?!{_SHORT_CHARACTER}).")

#: Characters that one entry holds, in three places.
_PER_ENTRY = 13
_ENTRY = struct.Struct("<B10sBBB12sH4s")
_LONG_NAME = 0x0F
_LAST = 0x40


def encode(name: str) -> bytes:
    """Return a name in UTF-16; raises DriverError where FAT can't hold it."""
    try:
        encoded = name.encode("utf-16-le")
    except UnicodeEncodeError:
        shown = name.encode(errors="surrogateescape")
        raise DriverError(f"The name {shown!r} is not UTF-8") from None
    if len(encoded) // 2 > MAX_LENGTH:
        raise DriverError(f"The name '{name}' is longer than {MAX_LENGTH} characters")
    if found := FORBIDDEN.search(name):
        raise DriverError(f"The name {name!r} has a character that FAT forbids: {found[0]!r}")
    if name.endswith((" ", ".")):
        raise DriverError(f"The name '{name}' ends with a space or dot, which FAT forbids")
    return encoded


def short_names(names: Iterable[str]) -> dict[str, bytes]:
    """Return a short name of 11 bytes for each name in a directory; raises DriverError."""
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault(name.upper(), name)
        if other != name:
            raise DriverError(f"The names '{other}' and '{name}' differ in case only")
    chosen = {
        name: _pad(*found.groups()) for name in folded.values() if (found := _SHORT.fullmatch(name))
    }
    taken = set(chosen.values())
    numbers: dict[tuple[str, str], int] = {}
    for name in folded.values():
        if name not in chosen:
            chosen[name] = _numbered(name, taken, numbers)
            taken.add(chosen[name])
    return chosen


def _pad(stem: str, extension: str | None) -> bytes:
    return f"{stem:<8}{extension or '':<3}".encode("ascii")


def _numbered(name: str, taken: set[bytes], numbers: dict[tuple[str, str], int]) -> bytes:
    """Make a short name with a number: REPORT~1TXT."""
    stem, _, extension = name.upper().replace(" ", "").lstrip(".").rpartition(".")
    if not stem:
        stem, extension = extension, ""
    stem = _NOT_SHORT.sub("_", stem.replace(".", ""))[:6] or "_"
    extension = _NOT_SHORT.sub("_", extension)[:3]
    number = numbers.get((stem, extension), 0)
    while True:
        number += 1
        tail = f"~{number}"
        short = _pad(stem[: 8 - len(tail)] + tail, extension)
        if short not in taken:
            numbers[stem, extension] = number
            return short


def long_entries(name: str, short: bytes) -> bytes:
    """Return the directory entries of a long name; nothing where the short one says it all."""
    stem, extension = short[:8].decode().rstrip(), short[8:].decode().rstrip()
    if name == (f"{stem}.{extension}" if extension else stem):
        return b""
    checksum = _checksum(short)
    encoded = encode(name)
    count = -(-len(encoded) // (2 * _PER_ENTRY))
    if len(encoded) % (2 * _PER_ENTRY):
        encoded += b"\0\0"
    encoded = encoded.ljust(2 * _PER_ENTRY * count, b"\xff")
    entries = []
    for number in range(count, 0, -1):
        part = encoded[2 * _PER_ENTRY * (number - 1) : 2 * _PER_ENTRY * number]
        order = number | (_LAST if number == count else 0)
        entries.append(
            _ENTRY.pack(order, part[:10], _LONG_NAME, 0, checksum, part[10:22], 0, part[22:])
        )
    return b"".join(entries)


def _checksum(short: bytes) -> int:
    total = 0
    for byte in short:
        total = ((total >> 1) + ((total & 1) << 7) + byte) & 0xFF
    return total

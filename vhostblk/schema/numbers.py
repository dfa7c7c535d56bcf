# SPDX-License-Identifier: Apache-2.0
"""Parsing of numbers like the C library and QEMU (`util/cutils.c`)."""

from __future__ import annotations

import re

_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|([0-9]+))")
_SIZE = re.compile(
    r"[ \t\n\v\f\r]*\+?(?:0[xX]([0-9a-fA-F]+)|([0-9]+)(?:\.([0-9]*))?)([bBkKmMgGtTpPeE]?)"
)
_SHIFTS = {suffix: 10 * power for power, suffix in enumerate("BKMGTPE")}


def parse_int64(text: str) -> int | None:
    """Parse a signed integer: decimal, octal ('0'), hexadecimal ('0x'); None if it is invalid."""
    value = _parse_integer(text)
    return value if value is not None and -(2**63) <= value < 2**63 else None


def parse_uint64(text: str) -> int | None:
    """Parse an unsigned integer; a negative one wraps around, as in strtoull(3)."""
    value = _parse_integer(text)
    return value % 2**64 if value is not None and -(2**64) < value < 2**64 else None


def _parse_integer(text: str) -> int | None:
    match = _INTEGER.fullmatch(text)
    if match is None or len(text) > 64:
        return None
    sign, hexadecimal, digits = match.groups()
    if hexadecimal:
        value = int(hexadecimal, 16)
    elif digits.startswith("0"):
        if re.search("[89]", digits):
            return None
        value = int(digits, 8)
    else:
        value = int(digits)
    return -value if sign == "-" else value


def parse_size(text: str) -> int | None:
    """Parse a size in bytes, such as 4096, 0x1000, 4k, 1.5G; None if it is invalid.

    A fraction of a byte is rounded; without a suffix there must be no fraction.
    """
    match = _SIZE.fullmatch(text)
    if match is None or len(text) > 64:
        return None
    hexadecimal, digits, decimals, suffix = match.groups()
    shift = _SHIFTS[suffix.upper() or "B"]
    from fractions import Fraction  # rare, and not needed for start-up

    number = Fraction(int(hexadecimal, 16) if hexadecimal else int(digits))
    if decimals:
        number += Fraction(int(decimals), 10 ** len(decimals))
    if shift == 0 and number.denominator != 1:
        return None
    value = int(number * 2**shift + Fraction(1, 2))
    return value if value < 2**64 else None

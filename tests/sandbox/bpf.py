# SPDX-License-Identifier: Apache-2.0
"""Runs a filter on a system call, as the kernel does, with the instructions that ours have."""

from __future__ import annotations

import struct

_LOAD, _EQUAL, _GREATER, _GREATER_OR_EQUAL, _SET, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06


def run(program: bytes, number: int, arch: int, *arguments: int) -> int:
    """Return the verdict."""
    six = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("=iIQ6Q", number if number < 1 << 31 else number - (1 << 32), arch, 0, *six)
    code = list(struct.iter_unpack("=HBBI", program))
    word = position = 0
    while True:
        operation, yes, no, value = code[position]
        position += 1
        if operation == _RETURN:
            return int(value)
        if operation == _LOAD:
            (word,) = struct.unpack_from("=I", data, value)
        else:
            passed = {
                _EQUAL: word == value,
                _GREATER: word > value,
                _GREATER_OR_EQUAL: word >= value,
                _SET: bool(word & value),
            }[operation]
            position += yes if passed else no

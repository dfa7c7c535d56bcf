# SPDX-License-Identifier: Apache-2.0
"""Bytes that are secret: in memory of their own, which is zeroed when they are done with.

That memory is not part of core dumps and is not inherited by child processes. Python's own objects
can't be zeroed: `bytes` and `str` are immutable, and the interpreter copies them as it likes. So
what reads, decodes or decrypts a secret writes into a `SecretBytes`, and passes `memoryview`s of it
on. What comes in a QMP command or on the command line has been in Python's strings before; of
these, copies stay in freed memory until it is used again.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

_MADV_DONTFORK = 10
_MADV_DONTDUMP = 16


class SecretBytes:
    """A secret of fixed length. A zero byte follows, for C."""

    __slots__ = ("_length", "_map")

    def __init__(self, data: bytes | bytearray | memoryview = b"", *, length: int = 0) -> None:
        """Copy `data`, or have `length` zero bytes."""
        self._length = len(data) or length
        self._map: mmap.mmap | None = mmap.mmap(
            -1, self._length + 1, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        for advice in (_MADV_DONTFORK, _MADV_DONTDUMP):
            with suppress(OSError):  # a kernel without it
                self._map.madvise(advice)
        if data:
            self._map[: len(data)] = data

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return "<secret>"

    @property
    def view(self) -> memoryview:
        """The bytes, to be read and written in place; release it before `wipe`."""
        return self.terminated[: self._length]

    @property
    def terminated(self) -> memoryview:
        """The bytes and the zero byte behind them."""
        assert self._map is not None, "used after it was wiped"
        return memoryview(self._map)

    def copy(self, length: int | None = None) -> SecretBytes:
        """Return a copy, of the first `length` bytes."""
        with self.view as view:
            return SecretBytes(view[:length])

    def wipe(self) -> None:
        """Zero the memory and give it back."""
        if self._map is None:
            return
        self._map[:] = bytes(len(self._map))
        with suppress(BufferError):  # somebody still looks at it, and sees zeroes
            self._map.close()
        self._map = None

    def __del__(self) -> None:
        self.wipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wipe()

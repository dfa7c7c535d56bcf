# SPDX-License-Identifier: Apache-2.0
"""Which part of a table in memory is newer than the file."""

from __future__ import annotations


class DirtyRange:
    """Entries [low, high) have changed since they were written."""

    __slots__ = ("high", "low")

    def __init__(self) -> None:
        self.low = self.high = 0

    @property
    def dirty(self) -> bool:
        """Whether there is something to write."""
        return self.high > self.low

    def touch(self, low: int, high: int) -> None:
        """Note that entries [low, high) have changed."""
        if self.high > self.low:
            self.low, self.high = min(self.low, low), max(self.high, high)
        else:
            self.low, self.high = low, high

    def clean(self) -> None:
        """Note that everything is in the file, or need not get there."""
        self.low = self.high = 0

# SPDX-License-Identifier: Apache-2.0
"""The part of a table in memory that differs from the file."""

from __future__ import annotations


class DirtyRange:
    """Entries [low, high) have changed since the last write."""

    __slots__ = ("high", "low")

    def __init__(self) -> None:
        self.low = self.high = 0

    @property
    def dirty(self) -> bool:
        """Whether there are changes to write."""
        return self.high > self.low

    def touch(self, low: int, high: int) -> None:
        """Record that entries [low, high) have changed."""
        if self.high > self.low:
            self.low, self.high = min(self.low, low), max(self.high, high)
        else:
            self.low, self.high = low, high

    def clean(self) -> None:
        """Record that all changes have been written, or need no write."""
        self.low = self.high = 0

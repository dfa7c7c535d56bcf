# SPDX-License-Identifier: Apache-2.0
"""Eviction of tables from a cache."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Number of tables to examine for each new one.
_STEPS = 64


class Table(Protocol):
    """A table in memory."""

    #: Whether it was used since it was last examined.
    used: bool
    #: Number of users; a pinned table is not evicted.
    pins: int

    @property
    def dirty(self) -> bool:
        """Whether it has changes that the file doesn't have."""


T = TypeVar("T", bound=Table)


class Tables(OrderedDict[int, T]):
    """Tables by number, in the order of examination."""

    def excess(self, limit: int, newest: T) -> Iterator[T]:
        """Yield tables to evict, until at most `limit` are left. The caller removes each at once.

        Only some are examined, so that the time doesn't depend on the number of tables. There may
        be more than `limit` for a while.
        """
        for _ in range(_STEPS):
            if len(self) <= limit:
                return
            number, old = next(iter(self.items()))
            self.move_to_end(number)
            if old is newest or old.dirty or old.pins:
                continue
            if old.used:
                old.used = False
            else:
                yield old

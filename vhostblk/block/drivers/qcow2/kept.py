# SPDX-License-Identifier: Apache-2.0
"""Which of the tables in memory go when there are too many."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How many tables are looked at for each one that comes.
_STEPS = 64


class Table(Protocol):
    """A table in memory."""

    #: It was used since it was last looked at.
    used: bool
    #: Users that it must not go away from.
    pins: int

    @property
    def dirty(self) -> bool:
        """Whether it is newer than the file."""


T = TypeVar("T", bound=Table)


class Tables(OrderedDict[int, T]):
    """Tables by number: those to be looked at first come first."""

    def excess(self, limit: int, newest: T) -> Iterator[T]:
        """Yield tables that may go, to be removed at once, until no more than `limit` are left.

        Only some are looked at, so that the time doesn't depend on how many there are. There may
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

# SPDX-License-Identifier: Apache-2.0
"""A model of dirty bitmaps: at least all changes are dirty, at most all ranges of requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.model.content import SECTOR
from tests.model.disk import NEVER

if TYPE_CHECKING:
    from numpy.typing import NDArray


class BitmapError(AssertionError):
    """A bitmap lacks a change, or has one that was not made."""


class BitmapModel:
    """A bitmap of a disk of `size` sectors."""

    def __init__(self, size: int, granularity: int, *, persistent: bool) -> None:
        """`granularity` is in bytes."""
        self.granularity = granularity
        self.persistent = persistent
        self.enabled = True
        #: The time of its creation; changes that started earlier need not be in it.
        self.since = NEVER
        self._must = np.zeros(size, np.bool_)
        self._may = np.zeros(size, np.bool_)

    def started(self, first: int, count: int) -> None:
        """Note that a change starts."""
        if self.enabled:
            self._may[first : first + count] = True

    def succeeded(self, first: int, count: int, start: int) -> None:
        """Note that a change was acknowledged; it started at time `start`."""
        if self.enabled and start > self.since:
            self._must[first : first + count] = True

    def clear(self) -> None:
        """Forget everything."""
        self._must[:] = self._may[:] = False

    def resize(self, size: int) -> None:
        """Change the size; the new part is clean."""
        for name in ("_must", "_may"):
            former: NDArray[np.bool_] = getattr(self, name)
            changed = np.zeros(size, np.bool_)
            kept = min(size, len(former))
            changed[:kept] = former[:kept]
            setattr(self, name, changed)

    def _granules(self, sectors: NDArray[np.bool_]) -> NDArray[np.bool_]:
        unit = self.granularity // SECTOR
        padded = np.zeros(-(-len(sectors) // unit) * unit, np.bool_)
        padded[: len(sectors)] = sectors
        granules: NDArray[np.bool_] = np.logical_or.reduce(padded.reshape(-1, unit), axis=1)
        return granules

    def check(self, name: str, dirty: NDArray[np.bool_]) -> None:
        """Compare with a bitmap's content, one value for each granule."""
        must, may = self._granules(self._must), self._granules(self._may)
        missing, added = np.flatnonzero(must & ~dirty), np.flatnonzero(dirty & ~may)
        if len(missing):
            raise BitmapError(f"bitmap {name} lacks {len(missing)} granules, first {missing[0]}")
        if len(added):
            raise BitmapError(f"bitmap {name} has {len(added)} granules, first {added[0]}")

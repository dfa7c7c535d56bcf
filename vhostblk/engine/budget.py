# SPDX-License-Identifier: Apache-2.0
"""Budgets in the engine: the Python face of `struct vb_budget`, and the choice between the two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vhostblk.engine import load
from vhostblk.engine.buckets import Budget, LeakyBuckets
from vhostblk.errors import VhostblkError

if TYPE_CHECKING:
    from collections.abc import Sequence


def make_budget() -> Budget:
    """Make a budget that the engine can take from, where there is one."""
    engine = load()
    return LeakyBuckets() if engine is None else EngineBudget(*engine)


class EngineBudget:
    """A budget that iothreads take from by themselves; see `Budget`.

    Extent maps refer to it (`ExtentMap.budget`).
    """

    def __init__(self, ffi: Any, lib: Any) -> None:
        self._ffi, self._lib = ffi, lib
        made = lib.vb_budget_new()
        if not made:
            raise VhostblkError("no memory for a budget")
        #: A `struct vb_budget *`, which lives as long as this object.
        self.handle = ffi.gc(made, lib.vb_budget_free)

    def configure(self, rates: Sequence[tuple[int, int, int]], unit: int, now: int) -> None:
        """Set the limits."""
        encoded = self._ffi.new("struct vb_rate[]", [tuple(rate) for rate in rates])
        self._lib.vb_budget_configure(self.handle, encoded, unit, now)

    def take(self, direction: int, size: int, now: int, others: bool) -> int:
        """Account for a request that may go now."""
        wait: int = self._lib.vb_budget_take(self.handle, direction, size, now, others)
        return wait

    def charge(self, direction: int, size: int, others: bool) -> None:
        """Account for a request that goes in any case."""
        self._lib.vb_budget_charge(self.handle, direction, size, others)

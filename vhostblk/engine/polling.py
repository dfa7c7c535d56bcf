# SPDX-License-Identifier: Apache-2.0
"""How long the event loop looks for more work before it sleeps.

A driver answers completions within a few microseconds; sleeping and being woken takes tens of them
on either side. So whoever has found work looks on, once in every turn of the loop, for up to a
*window*. It is the whole maximum where that pays. Where it doesn't, it shrinks, down to one look.
"""

from __future__ import annotations

from time import perf_counter_ns

#: The default of an iothread's `poll-max-ns`.
DEFAULT_MAX_NS = 32768


class Lookout:
    """Decides whether to look once more. `max_ns` of 0: never."""

    def __init__(self, max_ns: int = DEFAULT_MAX_NS) -> None:
        self.max_ns = max_ns
        self._window = max_ns
        self._since = 0

    def woken(self) -> None:
        """Note that work has come that nobody looked for."""
        self._since = perf_counter_ns()

    def found(self) -> None:
        """Note that looking has found work."""
        self._window = self.max_ns
        self._since = perf_counter_ns()

    def goes_on(self) -> bool:
        """Tell whether a look in vain is to be followed by another."""
        if perf_counter_ns() - self._since < self._window:
            return True
        self._window //= 2
        return False

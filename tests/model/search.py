# SPDX-License-Identifier: Apache-2.0
"""Searching for programs that fail, and shrinking them."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.model.run import run
from tests.model.strategies import programs

if TYPE_CHECKING:
    from tests.model.program import Program

#: Seconds for shrinking a program that failed.
SHRINKING = 240.0
#: The engine completes requests in another order each time, so a smaller program is run this often.
ATTEMPTS = 3


@dataclass
class Fault:
    """A program that failed, and its error."""

    program: Program
    error: str

    @property
    def kind(self) -> str:
        """The error without its numbers."""
        return re.sub(r"\d+", "N", self.error)[:120]


class _EnoughError(BaseException):
    """Time is up. Not an `Exception`, as hypothesis would take that for a failure."""


class Search:
    """Programs drawn from one seed, until time is up."""

    def __init__(self, *, deadline: float, shrink: bool = True) -> None:
        self._deadline = deadline
        self._shrink = shrink
        #: How many programs were run.
        self.count = 0
        self.fault: Fault | None = None
        self._found_at = 0.0

    def run(self, number: int, examples: int, focus: str | None, lane: str | None) -> Fault | None:
        """Run up to `examples` programs, drawn from a seed; return the smallest that failed."""
        self.fault = None

        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink] if self._shrink else [Phase.generate],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        @given(programs(focus, lane))
        def try_all(program: Program) -> None:
            self._try(program)

        try:
            try_all()
        except (_EnoughError, Exception) as error:
            if self.fault is None and not isinstance(error, _EnoughError):
                raise
        return self.fault

    def _try(self, program: Program) -> None:
        now = time.monotonic()
        if self.fault is None and now > self._deadline:
            raise _EnoughError
        if self.fault is not None and now > self._found_at + SHRINKING:
            raise _EnoughError
        for _ in range(1 if self.fault is None else ATTEMPTS):
            self.count += 1
            try:
                run(program)
            except Exception as error:
                self._note(program, error)
                raise

    def _note(self, program: Program, error: Exception) -> None:
        if self.fault is None:
            self._found_at = time.monotonic()
        elif len(program.to_json()) >= len(self.fault.program.to_json()):
            return
        self.fault = Fault(program, f"{type(error).__name__}: {error}")

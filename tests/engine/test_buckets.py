# SPDX-License-Identifier: Apache-2.0
"""The leaky buckets against a literal, slow statement of QEMU's rules, in exact fractions."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.engine.buckets import READ, WRITE, Budget, LeakyBuckets
from vhostblk.engine.budget import make_budget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SECOND = 10**9

Rates = list[tuple[int, int, int]]


@dataclass
class ExactBucket:
    """One rate: `level` is the main bucket, `burst_level` the one for the burst rate."""

    avg: int
    burst: int
    length: int
    level: Fraction = Fraction(0)
    burst_level: Fraction = Fraction(0)

    def wait(self) -> Fraction:
        if not self.avg:
            return Fraction(0)
        brim = Fraction(self.avg, 10) if not self.burst else Fraction(self.burst * self.length)
        if self.level > brim:
            return (self.level - brim) / self.avg * SECOND
        if self.length > 1:
            return (
                max(self.burst_level - Fraction(self.burst, 10), Fraction(0)) / self.burst * SECOND
            )
        return Fraction(0)


class ExactBuckets:
    """The rules, one by one."""

    def __init__(self, rates: Rates, unit: int) -> None:
        self.buckets = [ExactBucket(*rate) for rate in rates]
        self.unit = unit

    def leak(self, elapsed: int) -> None:
        for bucket in self.buckets:
            bucket.level = max(bucket.level - Fraction(bucket.avg * elapsed, SECOND), Fraction(0))
            leaked = Fraction(bucket.burst * elapsed, SECOND)
            bucket.burst_level = max(bucket.burst_level - leaked, Fraction(0))

    def counting(self, direction: int) -> list[tuple[ExactBucket, bool]]:
        """Return the buckets that count a request, and whether they count bytes."""
        one_way = 2 if direction == WRITE else 1
        return [(self.buckets[i], i < 3) for i in (0, one_way, 3, 3 + one_way)]

    def wait(self, direction: int) -> Fraction:
        return max(bucket.wait() for bucket, _ in self.counting(direction))

    def account(self, direction: int, size: int) -> None:
        operations = Fraction(size, self.unit) if self.unit and size > self.unit else Fraction(1)
        for bucket, bytes_count in self.counting(direction):
            bucket.level += size if bytes_count else operations
            bucket.burst_level += size if bytes_count else operations


@st.composite
def _rate(draw: st.DrawFn) -> tuple[int, int, int]:
    avg = draw(st.sampled_from([0, 1, 7, 100, 4096, 10**6, 10**12]))
    if not avg or draw(st.booleans()):
        return avg, 0, 1
    return avg, avg * draw(st.integers(1, 20)), draw(st.integers(1, 60))


_steps = st.lists(
    st.tuples(
        st.sampled_from([READ, WRITE]),
        st.sampled_from([0, 1, 512, 4096, 65536, 1 << 20]),
        st.integers(0, 2 * SECOND),
    ),
    max_size=60,
)

budgets = pytest.mark.parametrize("make", [LeakyBuckets, make_budget], ids=["python", "engine"])


@budgets
@given(st.lists(_rate(), min_size=6, max_size=6), st.sampled_from([0, 512, 5000]), _steps)
def test_requests_go_when_qemus_rules_let_them(
    make: Callable[[], Budget], rates: Rates, unit: int, steps: Sequence[tuple[int, int, int]]
) -> None:
    exact = ExactBuckets(rates, unit)
    budget = make()
    now = 5 * SECOND
    budget.configure(rates, unit, now)
    for direction, size, elapsed in steps:
        now += elapsed
        exact.leak(elapsed)
        wait = budget.take(direction, size, now, False)
        expected = exact.wait(direction)
        # Nothing but the rounding of floating point may make a difference.
        assert abs(wait - expected) <= 1 + expected / 10**6
        if not wait:
            exact.account(direction, size)


@budgets
@pytest.mark.parametrize(
    ("rate", "size", "total"),
    [((1000, 0, 1), 512, 10_100), ((1000, 5000, 2), 512, 20_000), ((3, 0, 1), 1, 31)],
)
def test_so_much_goes_in_ten_seconds(
    make: Callable[[], Budget], rate: tuple[int, int, int], size: int, total: int
) -> None:
    budget = make()
    budget.configure([(0, 0, 1)] * 3 + [rate] + [(0, 0, 1)] * 2, 0, 0)
    now, done = 0, 0
    while now < 10 * SECOND:
        wait = budget.take(done % 2, size, now, False)
        done += not wait
        now += wait
    assert abs(done - total) <= 1


@budgets
def test_what_goes_in_any_case_counts(make: Callable[[], Budget]) -> None:
    budget = make()
    budget.configure([(1000, 0, 1)] + [(0, 0, 1)] * 5, 0, 0)
    budget.charge(READ, 1100, False)
    assert budget.take(WRITE, 1, 0, False) == SECOND
    budget.configure([(1000, 0, 1)] + [(0, 0, 1)] * 5, 0, 0)
    assert budget.take(WRITE, 1, 0, False) == 0


@budgets
def test_a_clock_that_stands_or_goes_back_leaks_nothing(make: Callable[[], Budget]) -> None:
    budget = make()
    budget.configure([(1000, 0, 1)] + [(0, 0, 1)] * 5, 0, SECOND)
    budget.charge(READ, 1100, False)
    assert budget.take(READ, 1, SECOND, False) == SECOND
    assert budget.take(READ, 1, 0, False) == SECOND
    assert budget.take(READ, 1, 2 * SECOND, False) == 0


@budgets
def test_no_limit_no_wait(make: Callable[[], Budget]) -> None:
    budget = make()
    for _ in range(1000):
        assert budget.take(READ, 1 << 30, 0, False) == 0
    budget.configure([(0, 0, 1)] * 6, 0, 0)
    assert budget.take(WRITE, 1 << 62, 0, False) == 0

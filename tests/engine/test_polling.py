# SPDX-License-Identifier: Apache-2.0
"""How long to look for more work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vhostblk.engine import polling

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    now = 1_000_000

    def advance(ns: int) -> None:
        nonlocal now
        now += ns

    monkeypatch.setattr(polling, "perf_counter_ns", lambda: now)
    return advance


def looks_for(lookout: polling.Lookout, pass_time: Callable[[int], None]) -> int:
    """Look in vain until that is to end; return for how long."""
    passed = 0
    while lookout.goes_on():
        pass_time(10)
        passed += 10
    return passed


def test_looks_for_the_maximum_where_it_pays(pass_time: Callable[[int], None]) -> None:
    lookout = polling.Lookout(100)
    lookout.woken()
    for _ in range(3):
        lookout.found()
        assert lookout.goes_on()
        pass_time(90)
        assert lookout.goes_on()


def test_looks_for_less_where_it_does_not(pass_time: Callable[[int], None]) -> None:
    lookout = polling.Lookout(100)
    looked = []
    for _ in range(8):
        lookout.woken()
        looked.append(looks_for(lookout, pass_time))
    assert looked == sorted(looked, reverse=True)
    assert looked[0] == 100
    assert looked[-1] == 0
    lookout.woken()
    lookout.found()  # there is always one look, which may find something
    assert looks_for(lookout, pass_time) == 100


def test_may_be_told_not_to(pass_time: Callable[[int], None]) -> None:
    lookout = polling.Lookout(0)
    lookout.woken()
    assert not lookout.goes_on()
    lookout.found()
    assert not lookout.goes_on()

# SPDX-License-Identifier: Apache-2.0
"""Disks of all kinds have the data of the model, for all actions of guests and administrators.

Programs are drawn deterministically, so all runs are the same. `python -m tests.model` draws
others.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.model.program import Program
from tests.model.regressions import REGRESSIONS
from tests.model.run import run
from tests.model.strategies import FOCUSES, programs
from vhostblk.engine import load

_LANES = ("backend", "python", "express") if load() else ("backend", "python")
#: Programs for each focus and lane.
_EXAMPLES = 6
#: How many power cuts are checked for each program that failed once.
_CUTS = 60


@pytest.mark.parametrize("lane", _LANES)
@pytest.mark.parametrize("name", REGRESSIONS)
def test_programs_that_went_wrong_once(name: str, lane: str) -> None:
    run(Program.from_json(REGRESSIONS[name].replace("{lane}", lane)), cuts=_CUTS)


@pytest.mark.parametrize("lane", _LANES)
@pytest.mark.parametrize("focus", FOCUSES)
def test_disks_read_as_the_model_says(focus: str, lane: str) -> None:
    @settings(
        max_examples=_EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # only `python -m tests.model` shrinks programs
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def play(data: st.DataObject) -> None:
        run(data.draw(programs(focus, lane)))

    play()

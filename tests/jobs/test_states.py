# SPDX-License-Identifier: Apache-2.0
"""The tables of `vhostblk.jobs.states`."""

from __future__ import annotations

import pytest

from vhostblk.jobs.errors import JobError
from vhostblk.jobs.states import TRANSITIONS, VERBS, check_transition, check_verb
from vhostblk.schema.jobs import JobStatus, JobVerb


def test_every_state_and_verb_has_a_row() -> None:
    assert set(TRANSITIONS) == set(JobStatus)
    assert set(VERBS) == set(JobVerb)


def test_every_state_is_reached_and_left_for_the_end() -> None:
    reached = {JobStatus.UNDEFINED}.union(*TRANSITIONS.values())
    assert reached == set(JobStatus)
    assert [status for status, after in TRANSITIONS.items() if not after] == [JobStatus.NULL]


def test_a_wrong_transition_is_a_mistake() -> None:
    check_transition(JobStatus.RUNNING, JobStatus.READY)
    with pytest.raises(AssertionError, match="ready -> paused"):
        check_transition(JobStatus.READY, JobStatus.PAUSED)


def test_a_verb_is_refused_in_qemus_words() -> None:
    check_verb("j", JobStatus.PENDING, JobVerb.FINALIZE)
    with pytest.raises(JobError) as caught:
        check_verb("j", JobStatus.CONCLUDED, JobVerb.PAUSE)
    assert str(caught.value) == "Job 'j' in state 'concluded' cannot accept command verb 'pause'"

# SPDX-License-Identifier: Apache-2.0
"""The states of a job, and the verbs allowed in each (as in QEMU's `job.c`); no side effects.

    created -> running -> waiting -> pending -> concluded -> null
               |  ^  |                  |           ^
            paused   +-> ready          +-> aborting +
                          |  ^
                        standby

A job that fails or is cancelled goes to `aborting` from any state. In `waiting` it waits for other
jobs of its group, in `pending` for the user's `job-finalize`, and in `concluded` for `job-dismiss`.
"""

from __future__ import annotations

from vhostblk.jobs.errors import JobError
from vhostblk.schema.jobs import JobStatus, JobVerb

_S = JobStatus

#: The states that may follow each state.
TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    _S.UNDEFINED: frozenset({_S.CREATED}),
    _S.CREATED: frozenset({_S.RUNNING, _S.ABORTING, _S.NULL}),
    _S.RUNNING: frozenset({_S.PAUSED, _S.READY, _S.WAITING, _S.ABORTING}),
    _S.PAUSED: frozenset({_S.RUNNING}),
    _S.READY: frozenset({_S.STANDBY, _S.WAITING, _S.ABORTING}),
    _S.STANDBY: frozenset({_S.READY}),
    _S.WAITING: frozenset({_S.PENDING, _S.ABORTING}),
    _S.PENDING: frozenset({_S.ABORTING, _S.CONCLUDED}),
    _S.ABORTING: frozenset({_S.ABORTING, _S.CONCLUDED}),
    _S.CONCLUDED: frozenset({_S.NULL}),
    _S.NULL: frozenset(),
}

_AT_WORK = frozenset({_S.CREATED, _S.RUNNING, _S.PAUSED, _S.READY, _S.STANDBY})

#: The states in which each verb is accepted.
VERBS: dict[JobVerb, frozenset[JobStatus]] = {
    JobVerb.CANCEL: _AT_WORK | {_S.WAITING, _S.PENDING},
    JobVerb.PAUSE: _AT_WORK,
    JobVerb.RESUME: _AT_WORK,
    JobVerb.SET_SPEED: _AT_WORK,
    JobVerb.COMPLETE: frozenset({_S.READY}),
    JobVerb.FINALIZE: frozenset({_S.PENDING}),
    JobVerb.DISMISS: frozenset({_S.CONCLUDED}),
    JobVerb.CHANGE: _AT_WORK,
}

#: The state of a paused job, by what it was before.
PAUSED_FROM = {_S.RUNNING: _S.PAUSED, _S.READY: _S.STANDBY}

#: The work has ended; the job can only commit or abort.
COMPLETED = frozenset({_S.WAITING, _S.PENDING, _S.ABORTING, _S.CONCLUDED, _S.NULL})


def check_transition(before: JobStatus, after: JobStatus) -> None:
    """Raise an error for an invalid transition, which is a bug in the program."""
    assert after in TRANSITIONS[before], f"job: {before.value} -> {after.value}"


def check_verb(job_id: str, status: JobStatus, verb: JobVerb) -> None:
    """Raise JobError if a job in this state doesn't accept the verb."""
    if status not in VERBS[verb]:
        raise JobError(
            f"Job '{job_id}' in state '{status.value}' cannot accept command verb '{verb.value}'"
        )

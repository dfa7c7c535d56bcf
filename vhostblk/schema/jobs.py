# SPDX-License-Identifier: Apache-2.0
"""Background jobs (`qapi/job.json`)."""

from __future__ import annotations

from enum import Enum

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType


class JobType(Enum):
    """The type of a job."""

    COMMIT = "commit"
    STREAM = "stream"
    MIRROR = "mirror"
    BACKUP = "backup"
    CREATE = "create"
    AMEND = "amend"
    SNAPSHOT_LOAD = "snapshot-load"
    SNAPSHOT_SAVE = "snapshot-save"
    SNAPSHOT_DELETE = "snapshot-delete"


class JobStatus(Enum):
    """The state of a job; `vhostblk.jobs.states` has the transitions."""

    UNDEFINED = "undefined"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    READY = "ready"
    STANDBY = "standby"
    WAITING = "waiting"
    PENDING = "pending"
    ABORTING = "aborting"
    CONCLUDED = "concluded"
    NULL = "null"


class JobVerb(Enum):
    """An operation on a job."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    SET_SPEED = "set-speed"
    COMPLETE = "complete"
    DISMISS = "dismiss"
    FINALIZE = "finalize"
    CHANGE = "change"


class JobId(QapiStruct, kw_only=True, frozen=True):
    """Arguments of the commands on one job."""

    id: str


class JobInfo(QapiStruct, kw_only=True, frozen=True):
    """A job in the result of `query-jobs`; the unit of progress depends on the job."""

    id: str
    type: JobType
    status: JobStatus
    current_progress: int
    total_progress: int
    error: str | UnsetType = UNSET


class JobStatusChange(QapiStruct, kw_only=True, frozen=True):
    """Data of the event `JOB_STATUS_CHANGE`."""

    id: str
    status: JobStatus

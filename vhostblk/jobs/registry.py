# SPDX-License-Identifier: Apache-2.0
"""`Jobs`: the jobs of one daemon by their ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.jobs.errors import JobError
from vhostblk.schema.identifiers import is_identifier
from vhostblk.schema.jobs import JobStatus, JobStatusChange

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostblk.events import EventBus
    from vhostblk.jobs.job import Job


class Jobs:
    """All jobs, until they are dismissed."""

    def __init__(self, events: EventBus) -> None:
        self._events = events
        self._jobs: dict[str, Job] = {}

    def __iter__(self) -> Iterator[Job]:
        """Go through the jobs, the newest first."""
        return iter(list(reversed(self._jobs.values())))

    def find(self, job_id: str) -> Job:
        """Return a job; raises JobError."""
        found = self._jobs.get(job_id)
        if found is None:
            raise JobError("Job not found")
        return found

    def check_id(self, job_id: str) -> None:
        """Raise JobError where a new job can't have this id."""
        if not is_identifier(job_id):
            raise JobError(f"Invalid job ID '{job_id}'")
        if job_id in self._jobs:
            raise JobError(f"Job ID '{job_id}' already in use")

    def start(self, job: Job) -> None:
        """Take a new job in and start it; raises JobError, and then nothing has happened."""
        self.check_id(job.id)
        self._jobs[job.id] = job
        job.on_change = self._changed
        job.created()
        job.start()

    def _changed(self, job: Job) -> None:
        if job.status is JobStatus.NULL:
            del self._jobs[job.id]
        self._events.emit("JOB_STATUS_CHANGE", JobStatusChange(id=job.id, status=job.status))

    async def close(self) -> None:
        """Cancel all jobs and wait until they have gone."""
        for job in self:
            await job.cancel()
        for job in self:
            await job.wait()
            if job.id in self._jobs:
                await job.cancel()  # concluded by now: dismissed

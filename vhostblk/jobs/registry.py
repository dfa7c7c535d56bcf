# SPDX-License-Identifier: Apache-2.0
"""`Jobs`: the jobs of a daemon, by id."""

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
    """All jobs until they are dismissed."""

    def __init__(self, events: EventBus) -> None:
        self._events = events
        self._jobs: dict[str, Job] = {}

    def __iter__(self) -> Iterator[Job]:
        """Iterate over the jobs, the newest first."""
        return iter(list(reversed(self._jobs.values())))

    def find(self, job_id: str) -> Job:
        """Return a job; raises JobError."""
        found = self._jobs.get(job_id)
        if found is None:
            raise JobError("Job not found")
        return found

    def check_id(self, job_id: str) -> None:
        """Raise JobError if the id is invalid or in use."""
        if not is_identifier(job_id):
            raise JobError(f"Invalid job ID '{job_id}'")
        if job_id in self._jobs:
            raise JobError(f"Job ID '{job_id}' already in use")

    def start(self, job: Job) -> None:
        """Register and start a new job. On JobError nothing has happened."""
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
        """Cancel all jobs, and wait until all have ended."""
        for job in self:
            await job.cancel()
        for job in self:
            await job.wait()
            if job.id in self._jobs:
                await job.cancel()  # already concluded and dismissed

# SPDX-License-Identifier: Apache-2.0
"""Commands on jobs of all types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.daemon import Daemon  # noqa: TC001 (annotations are read at run time)
from vhostblk.qmp.registry import command, event
from vhostblk.schema.base import UNSET
from vhostblk.schema.jobs import JobId, JobInfo, JobStatusChange

if TYPE_CHECKING:
    from vhostblk.jobs.job import Job

event("JOB_STATUS_CHANGE", JobStatusChange)


@command("query-jobs")
async def query_jobs(daemon: Daemon) -> list[JobInfo]:
    """List the jobs, the newest first."""
    return [_describe(job) for job in daemon.jobs]


def _describe(job: Job) -> JobInfo:
    return JobInfo(
        id=job.id,
        type=job.type,
        status=job.status,
        current_progress=job.progress_done,
        total_progress=job.progress_total,
        error=UNSET if job.error is None else job.error,
    )


@command("job-pause")
async def job_pause(daemon: Daemon, arguments: JobId) -> None:
    """Pause a job at its next pause point."""
    daemon.jobs.find(arguments.id).user_pause()


@command("job-resume")
async def job_resume(daemon: Daemon, arguments: JobId) -> None:
    """Let a paused job continue."""
    daemon.jobs.find(arguments.id).user_resume()


@command("job-cancel")
async def job_cancel(daemon: Daemon, arguments: JobId) -> None:
    """Cancel a job at its next pause point."""
    await daemon.jobs.find(arguments.id).user_cancel()


@command("job-complete")
async def job_complete(daemon: Daemon, arguments: JobId) -> None:
    """Complete a job that is ready."""
    daemon.jobs.find(arguments.id).user_complete()


@command("job-finalize")
async def job_finalize(daemon: Daemon, arguments: JobId) -> None:
    """Make a job's result effective."""
    await daemon.jobs.find(arguments.id).user_finalize()


@command("job-dismiss")
async def job_dismiss(daemon: Daemon, arguments: JobId) -> None:
    """Remove a concluded job."""
    daemon.jobs.find(arguments.id).user_dismiss()

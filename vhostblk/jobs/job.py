# SPDX-License-Identifier: Apache-2.0
"""`Job`: the base of all kinds of jobs, with the coroutine that moves a job through its states.

`run()` does the work, in an asyncio task. It calls `pause_point()` between two steps, with no
request in flight. There the job is paused, and there a cancelled job gets `JobCancelled`. After
`run()`, `prepare()` does the part of finishing that can fail. Then `commit()` makes the result
effective or `abort()` undoes it, and `clean()` follows in either case. These three never fail.

A job that waits for the user after the bulk of its work (`mirror`) calls `become_ready()`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from vhostblk.errors import VhostblkError, log_failure, reason
from vhostblk.jobs.errors import JobCancelled, JobError
from vhostblk.jobs.states import COMPLETED, PAUSED_FROM, check_transition, check_verb
from vhostblk.schema.jobs import JobStatus, JobType, JobVerb

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

logger = logging.getLogger(__name__)


class Job(ABC):
    """One job. Its creator calls `jobs.registry.Jobs.start`."""

    type: ClassVar[JobType]
    #: Whether the job supports `job-complete`.
    completes: ClassVar[bool] = False

    def __init__(
        self, job_id: str, *, auto_finalize: bool = True, auto_dismiss: bool = True
    ) -> None:
        self.id = job_id
        self.auto_finalize = auto_finalize
        self.auto_dismiss = auto_dismiss
        self.status = JobStatus.UNDEFINED
        #: The reason of the failure; None: no failure.
        self.error: str | None = None
        #: In a unit that the job chooses.
        self.progress_done = self.progress_total = 0
        #: The job will fail at its next pause point.
        self.cancelled = False
        #: Called when `status` has changed.
        self.on_change: Callable[[Job], object] = _ignore
        self._user_paused = False
        self._pauses = 0
        self._finalizing = False
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # Methods that kinds of jobs override.

    @abstractmethod
    async def run(self) -> None:
        """Do the work; raises VhostblkError or OSError on failure."""

    async def prepare(self) -> None:  # noqa: B027
        """Do the part of finishing that can fail; raises like `run()`."""

    async def commit(self) -> None:  # noqa: B027
        """Make the result effective. Never fails."""

    async def abort(self) -> None:  # noqa: B027
        """Undo `run()` and `prepare()`. Never fails."""

    async def clean(self) -> None:  # noqa: B027
        """Release all resources. Never fails."""

    def on_complete(self) -> None:  # noqa: B027
        """Handle `job-complete` for a ready job; raises JobError."""

    def on_cancel(self, *, force: bool) -> bool:
        """Handle a cancellation; return whether the job fails (instead of ending normally)."""
        return True

    # Methods for `run()`.

    def expect(self, remaining: int) -> None:
        """Set the amount of work that remains."""
        self.progress_total = self.progress_done + remaining

    def advance(self, done: int) -> None:
        """Add to the amount of work done."""
        self.progress_done += done

    async def pause_point(self) -> None:
        """Wait while the job is paused; raises JobCancelled."""
        if self._pauses and not self.cancelled:
            before = self.status
            self._enter(PAUSED_FROM[before])
            while self._pauses and not self.cancelled:
                await self._woken.wait()
                self._woken.clear()
            self._enter(before)
        if self.cancelled:
            raise JobCancelled

    async def sleep(self, seconds: float | None = None) -> None:
        """Wait for a time, or (None) until woken. Verbs and earlier wake-ups end the wait, too."""
        if not self.cancelled and not self._pauses:
            try:
                await asyncio.wait_for(self._woken.wait(), seconds)
            except TimeoutError:
                pass
            self._woken.clear()
        await self.pause_point()

    def wake(self) -> None:
        """End `sleep()`."""
        self._woken.set()

    def become_ready(self) -> None:
        """Enter the state `ready`, which waits for the user."""
        self._enter(JobStatus.READY)

    # Methods for the job's creator, and for drained sections.

    def created(self) -> None:
        """Enter the first state."""
        self._enter(JobStatus.CREATED)

    def start(self) -> None:
        """Start the job's task."""
        self._enter(JobStatus.RUNNING)
        self._go_on(self._live())

    async def wait(self) -> None:
        """Wait until the job has concluded, or waits for the user's `job-finalize`."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    def pause(self) -> None:
        """Pause at the next pause point; may be nested."""
        self._pauses += 1
        self.wake()

    def resume(self) -> None:
        """Undo one `pause()`."""
        self._pauses -= 1
        if not self._pauses:
            self.wake()

    async def cancel(self, *, force: bool = True) -> None:
        """Cancel the job, which makes it fail. Its `abort()` may still run when this returns."""
        if self.status is JobStatus.CONCLUDED:
            self._dismiss()
            return
        if self._user_paused:
            self._user_paused = False
            self._pauses -= 1
        if not self.on_cancel(force=force):
            self.wake()
            return
        self.cancelled = True
        self.wake()
        if self.status is JobStatus.PENDING and not self._finalizing:
            self.error = reason(errno.ECANCELED)
            self._go_on(self._conclude())
            await self.wait()

    # Verbs of the user; they raise JobError.

    def user_pause(self) -> None:
        """`job-pause`."""
        self._check(JobVerb.PAUSE)
        if self._user_paused:
            raise JobError("Job is already paused")
        self._user_paused = True
        self.pause()

    def user_resume(self) -> None:
        """`job-resume`."""
        if not self._user_paused:
            raise JobError("Can't resume a job that was not paused")
        self._check(JobVerb.RESUME)
        self._user_paused = False
        self.resume()

    async def user_cancel(self, *, force: bool = True) -> None:
        """`job-cancel`."""
        self._check(JobVerb.CANCEL)
        if self._finalizing:
            raise JobError(f"Job '{self.id}' is being finalized")
        await self.cancel(force=force)

    def user_complete(self) -> None:
        """`job-complete`."""
        self._check(JobVerb.COMPLETE)
        if self.cancelled or not self.completes:
            raise JobError(f"The active block job '{self.id}' cannot be completed")
        self.on_complete()
        self.wake()

    async def user_finalize(self) -> None:
        """`job-finalize`."""
        self._check(JobVerb.FINALIZE)
        if self._finalizing:
            raise JobError(f"Job '{self.id}' is being finalized")
        self._go_on(self._finalize())
        await self.wait()

    def user_dismiss(self) -> None:
        """`job-dismiss`."""
        self._check(JobVerb.DISMISS)
        self._dismiss()

    # State transitions.

    def _check(self, verb: JobVerb) -> None:
        check_verb(self.id, self.status, verb)

    def _enter(self, status: JobStatus) -> None:
        check_transition(self.status, status)
        if status is not self.status:
            self.status = status
            self.on_change(self)

    def _go_on(self, part: Coroutine[object, object, None]) -> None:
        name = f"job {self.id}"
        self._task = asyncio.get_running_loop().create_task(part, name=name)
        self._task.add_done_callback(log_failure)

    @property
    def _is_torn_down(self) -> bool:
        """Whether the event loop is shutting down. No other code cancels a job's task."""
        return self._task is not None and self._task.cancelling() > 0

    async def _live(self) -> None:
        await self._attempt(self._run)
        if self.error is not None:
            await self._conclude()
            return
        self._enter(JobStatus.WAITING)
        self._enter(JobStatus.PENDING)
        if self.auto_finalize:
            await self._finalize()

    async def _run(self) -> None:
        await self.pause_point()
        await self.run()
        if self.cancelled:
            raise JobCancelled

    async def _finalize(self) -> None:
        self._finalizing = True
        await self._attempt(self.prepare)
        await self._conclude()

    async def _attempt(self, part: Callable[[], Coroutine[object, object, None]]) -> None:
        """Run a part that may fail, and record its error."""
        try:
            await part()
        except JobCancelled:
            self.error = reason(errno.ECANCELED)
        except asyncio.CancelledError:  # raised by what it awaited, or by cancelling its task
            if self._is_torn_down:
                raise
            self.error = reason(errno.ECANCELED)
        except (OSError, VhostblkError) as error:
            self.error = reason(error)
        except Exception as error:
            logger.exception("job %s", self.id)
            self.error = f"{type(error).__name__}: {error}"

    async def _conclude(self) -> None:
        if self.error is not None:
            self._enter(JobStatus.ABORTING)
        for part in (self.commit if self.error is None else self.abort, self.clean):
            try:
                await part()
            except (Exception, asyncio.CancelledError):
                if self._is_torn_down:
                    raise
                logger.exception("job %s", self.id)
        self._enter(JobStatus.CONCLUDED)
        if self.auto_dismiss:
            self._dismiss()

    def _dismiss(self) -> None:
        self._enter(JobStatus.NULL)

    @property
    def completed(self) -> bool:
        """Whether `run()` has ended."""
        return self.status in COMPLETED


def _ignore(_job: Job) -> None:
    pass

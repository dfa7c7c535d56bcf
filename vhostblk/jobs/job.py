# SPDX-License-Identifier: Apache-2.0
"""`Job`: what a kind of job overrides, and the coroutine that takes it through its states.

`run()` does the work, in an asyncio task. It calls `pause_point()` between two steps, where nothing
is in flight: there the job is paused, and there it hears of being cancelled (`JobCancelled`). What
it has done takes effect, or is undone, afterwards: `prepare()` does what can still fail, then comes
`commit()` or `abort()`, and `clean()` in either case. None of the last three may fail.

A job that waits for its user once the bulk is done (`mirror`) calls `become_ready()`.
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
    """One job. Who makes it has `jobs.registry.Jobs` start it."""

    type: ClassVar[JobType]
    #: Whether `job-complete` means anything to it.
    completes: ClassVar[bool] = False

    def __init__(
        self, job_id: str, *, auto_finalize: bool = True, auto_dismiss: bool = True
    ) -> None:
        self.id = job_id
        self.auto_finalize = auto_finalize
        self.auto_dismiss = auto_dismiss
        self.status = JobStatus.UNDEFINED
        #: Why it failed; None: it did not.
        self.error: str | None = None
        #: In units of the job's own.
        self.progress_done = self.progress_total = 0
        #: Is to fail, at its next pause point.
        self.cancelled = False
        #: Called when `status` has changed.
        self.on_change: Callable[[Job], object] = _ignore
        self._user_paused = False
        self._pauses = 0
        self._finalizing = False
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # What a kind of job overrides.

    @abstractmethod
    async def run(self) -> None:
        """Do the work; raises VhostblkError or OSError where it can't be done."""

    async def prepare(self) -> None:  # noqa: B027
        """Do what can fail of putting the result in force; raises as `run()`."""

    async def commit(self) -> None:  # noqa: B027
        """Put the result in force. Never fails."""

    async def abort(self) -> None:  # noqa: B027
        """Undo what `run()` and `prepare()` have done. Never fails."""

    async def clean(self) -> None:  # noqa: B027
        """Let go of everything. Never fails."""

    def on_complete(self) -> None:  # noqa: B027
        """Hear that the user wants a ready job to end; raises JobError."""

    def on_cancel(self, *, force: bool) -> bool:
        """Hear of a cancellation; tell whether it makes the job fail (and not just end)."""
        return True

    # For `run()`.

    def expect(self, remaining: int) -> None:
        """Say how much there still is to do."""
        self.progress_total = self.progress_done + remaining

    def advance(self, done: int) -> None:
        """Say how much more has been done."""
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
        """Wait for a time, or (None) until woken. Verbs end it, and so do earlier wakes."""
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
        """Wait for the user from now on."""
        self._enter(JobStatus.READY)

    # For the one who started it, and for what drains nodes.

    def created(self) -> None:
        """Begin to exist."""
        self._enter(JobStatus.CREATED)

    def start(self) -> None:
        """Begin to work."""
        self._enter(JobStatus.RUNNING)
        self._go_on(self._live())

    async def wait(self) -> None:
        """Wait until the job has concluded, or waits for the user's `job-finalize`."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    def pause(self) -> None:
        """Stop at the next pause point; may be nested."""
        self._pauses += 1
        self.wake()

    def resume(self) -> None:
        """Undo one `pause()`."""
        self._pauses -= 1
        if not self._pauses:
            self.wake()

    async def cancel(self, *, force: bool = True) -> None:
        """End the job, which thereby fails; its `abort()` may still be going on."""
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

    # Verbs of the user's; raise JobError.

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

    # The way through the states.

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
        """Whether the event loop is ending; nothing else cancels a job's task."""
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
        """Do a part that may fail, and keep why."""
        try:
            await part()
        except JobCancelled:
            self.error = reason(errno.ECANCELED)
        except asyncio.CancelledError:  # something that it waited for, or the job's task
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
        """Whether `run()` is over."""
        return self.status in COMPLETED


def _ignore(_job: Job) -> None:
    pass

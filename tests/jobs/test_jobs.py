# SPDX-License-Identifier: Apache-2.0
"""Jobs on their way through their states."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from vhostblk.events import Event, EventBus
from vhostblk.jobs.errors import JobError
from vhostblk.jobs.job import Job
from vhostblk.jobs.registry import Jobs
from vhostblk.schema.jobs import JobStatus, JobType

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class Steps(Job):
    """Takes steps that the test allows, and notes what happens to it."""

    type = JobType.BACKUP
    completes = True

    def __init__(self, job_id: str = "j", *, steps: int = 1, **flags: bool) -> None:
        super().__init__(job_id, **flags)
        self.steps = steps
        self.noted: list[str] = []
        self.failure: dict[str, BaseException] = {}
        self.ready = False
        self.soft = False
        self.may_step = asyncio.Semaphore(0)
        self._ended = False

    def _note(self, what: str) -> None:
        self.noted.append(what)
        if what in self.failure:
            raise self.failure[what]

    async def run(self) -> None:
        self.expect(self.steps)
        for _ in range(self.steps):
            await self.may_step.acquire()
            self._note("step")
            self.advance(1)
            await self.pause_point()
        if self.ready:
            self.become_ready()
            while not self._ended:
                await self.sleep()

    def on_complete(self) -> None:
        self._ended = True

    def on_cancel(self, *, force: bool) -> bool:
        if not force and self.soft:
            self._ended = True
            return False
        return True

    async def prepare(self) -> None:
        self._note("prepare")

    async def commit(self) -> None:
        self._note("commit")

    async def abort(self) -> None:
        self._note("abort")

    async def clean(self) -> None:
        self._note("clean")


class Bench:
    """A registry, and the changes of its jobs."""

    def __init__(self) -> None:
        self.bus = EventBus()
        self.jobs = Jobs(self.bus)
        self.states: list[str] = []
        self.bus.listen(self._note)

    def _note(self, event: Event) -> None:
        data: Any = event.data
        assert event.name == "JOB_STATUS_CHANGE"
        self.states.append(data.status.value)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 (of anything; each turn lets the jobs go on)
                await asyncio.sleep(0)


def run(body: Callable[[Bench], Coroutine[Any, Any, T]]) -> T:
    async def main() -> T:
        return await body(Bench())

    return asyncio.run(main())


LIFE = ["created", "running", "waiting", "pending", "concluded"]


def test_success_by_itself() -> None:
    async def body(bench: Bench) -> None:
        job = Steps(steps=2)
        bench.jobs.start(job)
        assert bench.states == ["created", "running"]
        job.may_step.release()
        await bench.until(lambda: job.progress_done == 1)
        assert (job.progress_done, job.progress_total) == (1, 2)
        job.may_step.release()
        await job.wait()
        assert bench.states == [*LIFE, "null"]
        assert job.noted == ["step", "step", "prepare", "commit", "clean"]
        assert list(bench.jobs) == []
        with pytest.raises(JobError, match=r"^Job not found$"):
            bench.jobs.find("j")

    run(body)


def test_finalized_and_dismissed_by_the_user() -> None:
    async def body(bench: Bench) -> None:
        job = Steps(steps=0, auto_finalize=False, auto_dismiss=False)
        bench.jobs.start(job)
        await job.wait()
        assert job.status.value == "pending"
        assert job.noted == []
        with pytest.raises(JobError, match="verb 'dismiss'"):
            job.user_dismiss()
        await job.user_finalize()
        assert job.status.value == "concluded"
        assert list(bench.jobs) == [job]
        with pytest.raises(JobError, match="verb 'finalize'"):
            await job.user_finalize()
        job.user_dismiss()
        assert list(bench.jobs) == []
        assert bench.states == [*LIFE, "null"]

    run(body)


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (JobError("it is so"), "it is so"),
        (KeyError("x"), "KeyError: 'x'"),
        (asyncio.CancelledError(), "Operation canceled"),
    ],
)
@pytest.mark.parametrize("part", ["step", "prepare"])
def test_failure(part: str, failure: BaseException, text: str) -> None:
    async def body(bench: Bench) -> None:
        job = Steps(auto_dismiss=False)
        job.failure[part] = failure
        job.may_step.release()
        bench.jobs.start(job)
        await job.wait()
        assert job.error == text
        assert job.noted[-2:] == ["abort", "clean"]
        passed = ["waiting", "pending"] if part == "prepare" else []
        assert bench.states == ["created", "running", *passed, "aborting", "concluded"]

    run(body)


@pytest.mark.parametrize("failure", [ValueError("oops"), asyncio.CancelledError()])
def test_what_may_not_fail_fails_in_the_log_only(failure: BaseException) -> None:
    async def body(bench: Bench) -> None:
        job = Steps(steps=0)
        job.failure["commit"] = failure
        bench.jobs.start(job)
        await job.wait()
        assert job.noted == ["prepare", "commit", "clean"]
        assert bench.states[-1] == "null"

    run(body)


def test_pause_and_resume() -> None:
    async def body(bench: Bench) -> None:
        job = Steps(steps=2)
        bench.jobs.start(job)
        with pytest.raises(JobError, match=r"^Can't resume a job that was not paused$"):
            job.user_resume()
        job.user_pause()
        with pytest.raises(JobError, match=r"^Job is already paused$"):
            job.user_pause()
        await bench.until(lambda: job.status is JobStatus.PAUSED)
        assert job.noted == []
        job.pause()  # by somebody else, too
        job.user_resume()
        job.resume()
        await bench.until(lambda: job.status is JobStatus.RUNNING)
        job.user_pause()
        job.may_step.release()
        await bench.until(lambda: job.status is JobStatus.PAUSED)
        assert job.noted == ["step"]
        job.may_step.release()
        job.user_resume()
        await job.wait()
        assert bench.states == [
            *("created", "running", "paused", "running", "paused", "running"),
            *LIFE[2:],
            "null",
        ]

    run(body)


def test_cancelled_while_paused() -> None:
    async def body(bench: Bench) -> None:
        job = Steps(auto_dismiss=False)
        bench.jobs.start(job)
        job.user_pause()
        await bench.until(lambda: job.status is JobStatus.PAUSED)
        await job.user_cancel()
        await job.wait()
        assert job.error == "Operation canceled"
        assert job.noted == ["abort", "clean"]
        assert bench.states[2:] == ["paused", "running", "aborting", "concluded"]
        with pytest.raises(JobError, match="verb 'cancel'"):
            await job.user_cancel()

    run(body)


def test_cancelled_when_all_was_done_already() -> None:
    async def body(bench: Bench) -> None:
        job = Steps(steps=0, auto_finalize=False)
        bench.jobs.start(job)
        await job.wait()
        await job.user_cancel()
        assert job.noted == ["abort", "clean"]
        assert bench.states == [*LIFE[:-1], "aborting", "concluded", "null"]

    run(body)


@pytest.mark.parametrize("end", ["complete", "cancel", "soft cancel"])
def test_ready(end: str) -> None:
    async def body(bench: Bench) -> None:
        job = Steps(steps=0)
        job.ready = job.soft = True
        bench.jobs.start(job)
        with pytest.raises(JobError, match="in state 'running' cannot accept"):
            job.user_complete()
        await bench.until(lambda: job.status is JobStatus.READY)
        job.user_pause()
        await bench.until(lambda: job.status is JobStatus.STANDBY)
        job.user_resume()
        await bench.until(lambda: job.status is JobStatus.READY)
        if end == "complete":
            job.user_complete()
        else:
            await job.user_cancel(force=end == "cancel")
        await job.wait()
        assert job.noted[-2:] == ["abort" if end == "cancel" else "commit", "clean"]

    run(body)


def test_a_job_that_does_not_complete_says_so() -> None:
    async def body(bench: Bench) -> None:
        job = Steps(steps=0)
        job.ready = True
        job.completes = False  # type: ignore[misc]
        bench.jobs.start(job)
        await bench.until(lambda: job.status is JobStatus.READY)
        with pytest.raises(JobError, match=r"^The active block job 'j' cannot be completed$"):
            job.user_complete()
        await bench.jobs.close()

    run(body)


def test_ids() -> None:
    async def body(bench: Bench) -> None:
        job = Steps()
        bench.jobs.start(job)
        with pytest.raises(JobError, match=r"^Job ID 'j' already in use$"):
            bench.jobs.start(Steps())
        with pytest.raises(JobError, match=r"^Invalid job ID '1'$"):
            bench.jobs.start(Steps("1"))
        other = Steps("k")
        bench.jobs.start(other)
        assert list(bench.jobs) == [other, job]
        for each in (job, other):
            each.may_step.release()
        await bench.jobs.close()

    run(body)


def test_closing_ends_jobs_in_every_state() -> None:
    async def body(bench: Bench) -> None:
        paused, pending, done = Steps("a"), Steps("b", auto_finalize=False), Steps("c", steps=0)
        pending.steps = 0
        done.auto_dismiss = False
        for job in (paused, pending, done):
            bench.jobs.start(job)
        paused.user_pause()
        await bench.until(lambda: paused.status is JobStatus.PAUSED)
        await pending.wait()
        await done.wait()
        await bench.jobs.close()
        assert list(bench.jobs) == []
        assert bench.states.count("null") == 3
        assert (paused.error, pending.error) == ("Operation canceled",) * 2
        assert "commit" in done.noted

    run(body)


def test_sleep_ends_with_its_time_or_a_wake() -> None:
    async def body(bench: Bench) -> None:
        class Sleeper(Steps):
            async def run(self) -> None:
                await self.sleep(0.001)
                self.noted.append("slept")
                await self.sleep()
                self.noted.append("woken")

        job = Sleeper()
        bench.jobs.start(job)
        await bench.until(lambda: "slept" in job.noted)
        assert job.noted == ["slept"]
        job.wake()
        await job.wait()
        assert job.noted[:2] == ["slept", "woken"]

    run(body)

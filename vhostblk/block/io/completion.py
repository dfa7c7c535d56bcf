# SPDX-License-Identifier: Apache-2.0
"""Awaiting I/O without an asyncio task for each request.

A `Task` costs 3 to 13 µs; a request on the Python lane must cost less than that in total. So
`drive()` runs block-layer coroutines without a task: it sends into the coroutine and, when the
coroutine suspends, adds a callback to the object that it waits for. The same coroutine also runs
inside ordinary tasks (QMP commands, tests). So a `Completion` implements the part of asyncio's
future protocol that tasks use (CPython `Modules/_asynciomodule.c`, `task_step`), and `drive()`
supports asyncio futures.

A driven coroutine has no current task, so `asyncio.timeout()` and `TaskGroup` do not work in it.
Wrap such work in `loop.create_task()`, and await the task.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterable
    from contextvars import Context

T = TypeVar("T")


class Completion(Generic[T]):
    """The result of one operation, awaited by exactly one coroutine.

    `set_result()` and `set_exception()` resume a driven coroutine at once, on the caller's stack.
    They are called on the event loop's thread only.
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_done", "_exception", "_loop", "_result")

    def __init__(self) -> None:
        self._asyncio_future_blocking = False
        self._callback: Callable[[], object] | None = None
        self._done = False
        self._exception: BaseException | None = None
        self._result: T | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def done(self) -> bool:
        """Return whether the result is known."""
        return self._done

    def set_result(self, result: T) -> None:
        """Set the result, and resume the coroutine that waits."""
        self._result = result
        self._finish()

    def set_exception(self, exception: BaseException) -> None:
        """Set an exception as the result, and resume the coroutine that waits."""
        self._exception = exception
        self._finish()

    def _finish(self) -> None:
        self._done = True
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()

    def result(self) -> T:
        """Return the result or raise the exception; call only once `done()`."""
        if self._exception is not None:
            raise self._exception
        return self._result  # type: ignore[return-value]  # T may be None

    def __await__(self) -> Generator[Any, None, T]:
        if not self._done:
            self._asyncio_future_blocking = True
            yield self
        return self.result()

    __iter__ = __await__

    # The methods that asyncio.Task calls on a future.

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop, like a future."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def add_done_callback(
        self, callback: Callable[[Any], object], *, context: Context | None = None
    ) -> None:
        """Have the loop call `callback(self)` once the result is known."""
        loop = self.get_loop()

        def wake() -> None:
            loop.call_soon(callback, self, context=context)

        if self._done:
            wake()
        else:
            self._callback = wake

    def cancel(self, msg: object = None) -> bool:
        """Return False: the kernel uses the buffers of an operation in flight."""
        return False


def resolve_all(waiting: list[Completion[None]]) -> None:
    """Set the result of all completions in the list, and empty the list."""
    now = waiting.copy()
    waiting.clear()
    for completion in now:
        completion.set_result(None)


def drive(
    coroutine: Coroutine[Any, Any, T],
    on_done: Callable[[T | None, BaseException | None], object],
) -> None:
    """Run a coroutine without a task; call `on_done(result, exception)` at its end.

    It runs at once up to its first suspension. If the coroutine never suspends, `on_done` has been
    called when this returns. Call on the event loop's thread.
    """
    try:
        waited = coroutine.send(None)
    except StopIteration as stop:
        on_done(stop.value, None)
    except Exception as exception:
        on_done(None, exception)
    else:
        follow(coroutine, waited, on_done)


def follow(
    coroutine: Coroutine[Any, Any, T],
    waited: object,
    on_done: Callable[[T | None, BaseException | None], object],
) -> None:
    """Continue a coroutine, as `drive()` does, that has suspended and yielded `waited`."""
    _Driven(coroutine, on_done).wait_for(waited)


class _Driven(Generic[T]):
    """A coroutine that has been suspended at least once."""

    __slots__ = ("_coroutine", "_on_done")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, T],
        on_done: Callable[[T | None, BaseException | None], object],
    ) -> None:
        self._coroutine = coroutine
        self._on_done = on_done

    def wait_for(self, waited: Any) -> None:
        if type(waited) is Completion:
            waited._asyncio_future_blocking = False
            waited._callback = self.step
        elif waited is None:  # asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(self.step)
        else:
            waited._asyncio_future_blocking = False
            waited.add_done_callback(self._future_done)

    def _future_done(self, future: object) -> None:
        self.step()

    def step(self) -> None:
        try:
            waited = self._coroutine.send(None)
        except StopIteration as stop:
            self._on_done(stop.value, None)
        except Exception as exception:
            self._on_done(None, exception)
        else:
            self.wait_for(waited)


class Together:
    """Coroutines that run concurrently, each from its start."""

    __slots__ = ("_done", "_errors", "_left")

    def __init__(self) -> None:
        self._left = 0
        self._errors: list[BaseException | None] = []
        self._done: Completion[None] | None = None

    def start(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Start a coroutine."""
        index = len(self._errors)
        self._errors.append(None)
        try:
            waited = coroutine.send(None)
        except StopIteration:  # most reads hit a cache, and never suspend
            return
        except Exception as error:
            self._errors[index] = error
            return
        self._left += 1
        follow(coroutine, waited, partial(self._ended, index))

    def _ended(self, index: int, _result: object, error: BaseException | None) -> None:
        self._errors[index] = error
        self._left -= 1
        if self._done is not None and not self._left:
            self._done.set_result(None)

    async def ended(self) -> list[BaseException | None]:
        """Wait until all have ended; return the exceptions."""
        if self._left:
            self._done = Completion()
            await self._done
        return self._errors


async def gather(coroutines: Iterable[Coroutine[Any, Any, object]]) -> list[BaseException | None]:
    """Run coroutines concurrently; return their exceptions once all have ended."""
    together = Together()
    for coroutine in coroutines:
        together.start(coroutine)
    return await together.ended()


async def outcomes(coroutines: Iterable[Coroutine[Any, Any, object]]) -> list[OSError | None]:
    """Run I/O coroutines concurrently; return the OSError of each, or None if it succeeded.

    Other exceptions are raised once all have ended.
    """
    found: list[OSError | None] = []
    for error in await gather(coroutines):
        if error is not None and not isinstance(error, OSError):
            raise error
        found.append(error)
    return found

# SPDX-License-Identifier: Apache-2.0
"""`SyncDriver`: a plug-in driver without coroutines, whose methods run in threads.

The node uses a `Threaded` in its place, which passes each call to a thread and waits. The first
call of a burst that ends wakes the event loop. By the time that the loop gets the interpreter lock,
the thread has usually finished the other calls too, or waits for I/O.
"""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from vhostblk.block.io.completion import Completion
from vhostblk.plugin.child import Extent, SyncChild
from vhostblk.plugin.driver import DriverBase, O, absent, unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer


T = TypeVar("T")


class SyncDriver(DriverBase[O, SyncChild]):
    """A disk with plain methods. The methods and attributes are those of `Driver`.

    One thread runs all methods, also `open`, `close` and `size`, one after the other: no locks are
    needed. With more `threads`, calls overlap, and only the users order them: a `flush` starts
    after the writes that it covers have returned.
    """

    threads: ClassVar[int] = 1

    def open(self) -> None:
        """Set up the driver; the children are open. An exception makes opening the node fail."""

    def close(self) -> None:
        """Release all resources. No request is in flight, and none follows."""

    @abstractmethod
    def read(self, offset: int, length: int) -> Buffer:
        """Return `length` bytes: `bytes`, or an object with a contiguous buffer (a numpy array)."""

    @absent
    def write(self, offset: int, data: bytes) -> None:
        """Store `data`, a copy of the guest's data that the driver may keep."""
        raise unsupported()

    @absent
    def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range read as zeroes; its storage may be deallocated."""
        raise unsupported()

    @absent
    def discard(self, offset: int, length: int) -> None:
        """Deallocate the storage of a range; its content becomes undefined."""
        raise unsupported()

    @absent
    def flush(self) -> None:
        """Put every completed write on stable storage."""

    @absent
    def block_status(self, offset: int, length: int) -> Extent:
        """Return the status of the run at `offset`."""
        return Extent(length)

    @absent
    def truncate(self, size: int) -> None:
        """Change the length of the disk. The text of an OSError is shown to the user."""
        raise unsupported()


#: A call and its completion; None ends a thread.
_Job = tuple["Completion[Any]", "Callable[..., Any]", tuple[Any, ...]] | None


class Workers:
    """Threads that run calls for the event loop's thread."""

    def __init__(self, name: str, count: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._done: deque[tuple[Completion[Any], Any, BaseException | None]] = deque()
        self._waking = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def call(self, function: Callable[..., T], *arguments: Any) -> Completion[T]:
        """Run a function in a thread."""
        completion: Completion[T] = Completion()
        self._jobs.put((completion, function, arguments))
        return completion

    def stop(self) -> None:
        """End the threads; no call is in progress."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        jobs, done = self._jobs, self._done
        while (job := jobs.get()) is not None:
            completion, function, arguments = job
            try:
                done.append((completion, function(*arguments), None))
            except BaseException as error:
                done.append((completion, None, error))
            if not self._waking:
                self._waking = True
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._waking = False  # before looking, so that later calls wake the loop again
        done = self._done
        while done:
            completion, result, error = done.popleft()
            if error is None:
                completion.set_result(result)
            else:
                completion.set_exception(error)


class Threaded:
    """A `SyncDriver` with the coroutines of a `Driver`."""

    def __init__(self, driver: SyncDriver[Any], name: str) -> None:
        self._driver = driver
        self._workers = Workers(name, driver.threads)
        for operation in _OPERATIONS:
            setattr(self, operation, self._in_thread(getattr(driver, operation)))

    def _in_thread(self, method: Callable[..., T]) -> Callable[..., Any]:
        call = self._workers.call

        def run(*arguments: Any) -> Completion[T]:
            return call(method, *arguments)

        return run

    def stop(self) -> None:
        """End the threads."""
        self._workers.stop()


_OPERATIONS = (
    *("open", "close", "size", "read", "write", "write_zeroes", "discard", "flush"),
    *("block_status", "truncate"),
)

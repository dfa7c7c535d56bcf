# SPDX-License-Identifier: Apache-2.0
"""An engine thread and its news: the Python face of `struct vb_iothread`.

The thread serves ports on its own. What it has to say (requests that go up, a port that has become
idle, a broken ring) it announces on one eventfd, which the event loop watches; `Iothread` then lets
every port look at its own state and hands each its upcalls. Where all requests of a port go up,
the event loop then looks for more in the thread's place, for as long as that pays (`polling.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from vhostblk.engine import load
from vhostblk.engine.polling import DEFAULT_MAX_NS, Lookout
from vhostblk.errors import VhostblkError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

#: How long an iothread may be in one thing before this is logged.
STUCK_SECONDS = 5.0
#: Bytes of a thread's name that the kernel keeps (prctl(2), PR_SET_NAME).
_THREAD_NAME = 15

#: Requests, and segments, that are fetched at once. The engine answers a request with more segments
#: than this with an error itself.
UPCALL_REQUESTS = 256
UPCALL_SEGMENTS = 65536


class PortListener(Protocol):
    """The Python side of a port."""

    @property
    def label(self) -> str:
        """What messages call it."""

    def engine_news(self) -> None:
        """Look at the port's state: idle, or broken."""

    def upcalls(self, records: NDArray[np.void], iovs: NDArray[np.void]) -> None:
        """Serve requests (`UPCALL` records, `IOVEC` segments).

        The records are valid until this returns; the segments are a copy.
        """


class IothreadOptions(msgspec.Struct, frozen=True):
    """The properties of an `iothread` object; times in nanoseconds."""

    poll_max_ns: int = DEFAULT_MAX_NS
    poll_grow: int = 0
    poll_shrink: int = 0
    aio_max_batch: int = 0
    pool_threads: int = 16


class Iothread:
    """A thread, started at once. Made and used on the event loop's thread.

    Raises VhostblkError where it can't be started, or there is no engine.
    """

    def __init__(self, name: str, options: IothreadOptions) -> None:
        engine = load()
        if engine is None:
            raise VhostblkError(f"iothread '{name}' needs the compiled engine")
        self.name = name
        self.ffi, self.lib = engine
        self._ports: dict[int, PortListener] = {}
        self._loop = asyncio.get_running_loop()
        self._upcall_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._buffers: _UpcallBuffers | None = None
        self._lookout = Lookout(options.poll_max_ns)
        self._look_handle: asyncio.Handle | None = None
        self._changed = self.ffi.new("struct vb_port *[]", 64)
        #: What the thread is stuck in, as a message; None: it is not.
        self.stuck: str | None = None
        self._report = self.ffi.new("struct vb_report *")
        self._seen = (0, 0)
        self._seen_since = 0.0
        config = self.ffi.new(
            "struct vb_iothread_config *",
            {
                "poll_max_ns": options.poll_max_ns,
                "poll_grow": options.poll_grow,
                "poll_shrink": options.poll_shrink,
                "max_batch": options.aio_max_batch,
                "pool_threads": options.pool_threads,
                "no_uring": os.environ.get("VHOSTBLK_IO_URING") == "off",
                "name": f"IO {name}".encode()[:_THREAD_NAME],
                "upcall_fd": self._upcall_fd,
            },
        )
        error = self.ffi.new("int *")
        self.handle = self.lib.vb_iothread_new(config, error)
        if not self.handle:
            os.close(self._upcall_fd)
            raise VhostblkError(f"iothread '{name}' can't be started: {reason(error[0])}")
        if not self.lib.vb_iothread_uses_uring(self.handle):
            logger.warning("iothread '%s': io_uring is not available, using threads", name)
        self._loop.add_reader(self._upcall_fd, self._news)

    @property
    def thread_id(self) -> int:
        """The system's number of the thread."""
        number: int = self.lib.vb_iothread_thread_id(self.handle)
        return number

    def watch(self, now: float) -> None:
        """Log once that the thread has been in one thing for long, and once that it goes on."""
        report = self._report
        self.lib.vb_iothread_report(self.handle, report)
        seen = (int(report.steps), int(report.doing))
        if seen != self._seen or seen[1] == self.lib.VB_DOING_SLEEP:
            if self.stuck is not None:
                logger.warning("iothread '%s' goes on", self.name)
            self._seen, self._seen_since, self.stuck = seen, now, None
        elif self.stuck is None and now - self._seen_since >= STUCK_SECONDS:
            self.stuck = f"iothread '{self.name}' is stuck in {self._doing()}"
            logger.warning("%s", self.stuck)

    def _doing(self) -> str:
        report, lib = self._report, self.lib
        listener = self._ports.get(int(report.port))
        of_port = f" of {listener.label}" if listener is not None else ""
        match report.doing:
            case lib.VB_DOING_WRITE:
                return f"a write of {report.length} bytes at {report.offset}{of_port}"
            case lib.VB_DOING_NOTIFY:
                return f"a notification{of_port}"
            case lib.VB_DOING_SUBMIT:
                return "io_uring_enter"
        return "an access to guest memory"

    def set_polling(self, options: IothreadOptions) -> None:
        """Take over how long to poll."""
        self.lib.vb_iothread_set_poll(
            self.handle, options.poll_max_ns, options.poll_grow, options.poll_shrink
        )
        self._lookout.max_ns = options.poll_max_ns

    def add(self, port: Any, listener: PortListener) -> None:
        """Tell `listener` what happens to `port`, a `struct vb_port *`."""
        self._ports[self._key(port)] = listener

    def remove(self, port: Any) -> None:
        """Undo `add`."""
        del self._ports[self._key(port)]

    def _key(self, port: Any) -> int:
        return int(self.ffi.cast("uintptr_t", port))

    def close(self) -> None:
        """Stop the thread; no port is left."""
        assert not self._ports, "ports still on the iothread"
        self._loop.remove_reader(self._upcall_fd)
        if self._look_handle is not None:
            self._look_handle.cancel()
        self.lib.vb_iothread_free(self.handle)
        os.close(self._upcall_fd)

    def _news(self) -> None:
        try:
            os.eventfd_read(self._upcall_fd)
        except BlockingIOError:
            return
        if self._take_upcalls() and self._look_handle is None:
            self._lookout.woken()
            self._look_handle = self._loop.call_soon(self._look)
        self._tell_news()

    def _tell_news(self) -> None:
        """Have those ports look that have news."""
        full = True
        while full:
            count = self.lib.vb_news_take(self.handle, self._changed, len(self._changed))
            full = count == len(self._changed)
            for port in self._changed[0:count]:
                listener = self._ports.get(self._key(port))
                if listener is not None:
                    with self._alone():
                        listener.engine_news()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Log what a listener raises: the others have to be told, for nobody tells them again."""
        try:
            yield
        except Exception as error:
            logger.error("iothread '%s': internal error", self.name, exc_info=error)

    def _look(self) -> None:
        """Look for more, and once more in the loop's next turn."""
        self._look_handle = None
        if not self.lib.vb_upcalls_look(self.handle):
            return
        goes_on = True
        try:
            if self._take_upcalls():
                self._lookout.found()
            else:
                goes_on = self._lookout.goes_on()
        finally:
            if goes_on:
                self._look_handle = self._loop.call_soon(self._look)
            else:
                self.lib.vb_upcalls_look_no_more(self.handle)

    def _take_upcalls(self) -> bool:
        """Hand out all upcalls; tell whether there were any."""
        if self._buffers is None:
            self._buffers = _UpcallBuffers(self.ffi)
        any_taken = False
        while self._take_some_upcalls(self._buffers):
            any_taken = True
        return any_taken

    def _take_some_upcalls(self, buffers: _UpcallBuffers) -> bool:
        count: int = self.lib.vb_upcalls_take(
            self.handle,
            UPCALL_REQUESTS,
            buffers.records_pointer,
            buffers.port_pointer,
            UPCALL_SEGMENTS,
            buffers.iovs_pointer,
        )
        if count:
            with self._alone():
                self._ports[buffers.port].upcalls(*buffers.taken(count))
        return count > 0


class _UpcallBuffers:
    """Where the engine puts upcalls; big enough for any one request."""

    def __init__(self, ffi: Any) -> None:
        import numpy as np

        from vhostblk.engine.layouts import IOVEC, UPCALL, check

        check(ffi)
        self._records = np.zeros(UPCALL_REQUESTS, UPCALL)
        self._port = np.zeros(1, np.uint64)
        self._iovs = np.zeros(UPCALL_SEGMENTS, IOVEC)
        self.records_pointer = ffi.from_buffer("struct vb_upcall *", self._records)
        self.port_pointer = ffi.from_buffer("struct vb_port **", self._port)
        self.iovs_pointer = ffi.from_buffer("uint64_t *", self._iovs)

    @property
    def port(self) -> int:
        """The address of the port that the requests are of."""
        return int(self._port[0])

    def taken(self, count: int) -> tuple[NDArray[np.void], NDArray[np.void]]:
        """Return `count` records, and a copy of their segments."""
        records = self._records[:count]
        last = records[-1]
        used = int(last["iov_first"]) + int(last["iov_count"])
        return records, self._iovs[:used].copy()

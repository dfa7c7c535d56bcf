# SPDX-License-Identifier: Apache-2.0
"""Serves clients: one thread accepts, others read, carry out commands and answer.

Threads wait for events of all connections in one epoll descriptor. The one that gets an event does
all there is to do: it reads, carries the command out and answers. So a command is never handed
over between threads, and two threads never have the same connection (EPOLLONESHOT). Before a thread
turns to an event it makes sure that another one waits, and starts it if need be: each system call
on a client's descriptor may block for as long as the client likes, closing it included (think of a
file of a FUSE file system). So there may be as many threads as connections, and these are
limited, in all and for each client process.

A client that has begun a message, or doesn't read its reply, has `patience` seconds for all of it.
One that owes nothing may stay for ever, as QEMU does.

The lock guards what several threads change: the table, `is_running`, `deadline`, and closing.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from vhostblk.pr.connection import Connection
from vhostblk.pr.trace import pr_helper_command, pr_helper_connect, pr_helper_disconnect
from vhostblk.ratelimit import RateLimitedLogger
from vhostblk.reservations.errors import ProtocolError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from vhostblk.reservations.wire import Reply, Request

logger = logging.getLogger(__name__)

#: Connections in all, and of one process.
MAX_CONNECTIONS = 1024
MAX_OF_A_PROCESS = 128
#: Seconds for a message, or for reading a reply.
PATIENCE = 30.0
#: Seconds after which a thread that isn't needed ends.
_IDLE = 10.0
#: Threads that stay.
_SPARE = 2
#: Seconds without accepting after that has failed: there are too many open files, say.
_PAUSE = 0.5
#: A thread needs little, and there may be many.
_STACK = 256 << 10


class Server:
    """Serves the clients of one listening socket until `stop` is called."""

    def __init__(
        self,
        listener: socket.socket,
        execute: Callable[[Request], Reply],
        *,
        quiet: bool = False,
        patience: float = PATIENCE,
        max_connections: int = MAX_CONNECTIONS,
        max_of_a_process: int = MAX_OF_A_PROCESS,
    ) -> None:
        """`execute` carries commands out, in many threads; `quiet`: don't log clients' errors."""
        self._listener = listener
        self._execute = execute
        self._quiet = quiet
        self._patience = patience
        self._limits = max_connections, max_of_a_process
        self._log = RateLimitedLogger(logger, "")
        self._log_lock = threading.Lock()
        self._lock = threading.Lock()
        self._connections: dict[int, Connection] = {}
        self._is_stopping = False
        self._paused_until = 0.0
        #: Threads in all, and those that wait for events.
        self._threads = self._waiting = 0
        self._epoll = select.epoll()
        #: Wakes the thread that accepts; written to by others and by signal handlers.
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        #: Once it is readable, all threads end.
        self._end = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._end, select.EPOLLIN)

    def serve(self, grace: float) -> bool:
        """Serve until `stop`; then wait for commands, `grace` seconds at most.

        Returns whether all of them have ended.
        """
        former = threading.stack_size(_STACK)
        try:
            for _ in range(_SPARE):
                self._start_thread()
            poll = select.poll()
            poll.register(self._wakeup, select.POLLIN)
            while not self._is_stopping:
                self._wait(poll)
                self._shut_down_late()
            return self._finish(grace)
        finally:
            threading.stack_size(former)

    def stop(self) -> None:
        """Have `serve` return; may be called by a signal handler, and by any thread."""
        self._is_stopping = True
        self._wake()

    def warn(self, message: str) -> None:
        """Log what clients can cause, but not too often."""
        # Nobody waits for a thread that the reader of the log keeps waiting.
        if self._log_lock.acquire(blocking=False):
            try:
                self._log.warning("%s", message)
            finally:
                self._log_lock.release()

    # The thread that accepts.

    def _wait(self, poll: select.poll) -> None:
        now = time.monotonic()
        with self._lock:
            moments = [each.deadline for each in self._connections.values() if each.deadline]
        if self._paused_until > now:
            poll.register(self._listener, 0)
            moments.append(self._paused_until)
        else:
            poll.register(self._listener, select.POLLIN)
        timeout = max(0.0, min(moments) - now) * 1000 + 1 if moments else None
        for fd, _ in poll.poll(timeout):
            if fd == self._wakeup:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wakeup)
            elif not self._is_stopping:
                self._accept()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            self._paused_until = time.monotonic() + _PAUSE
            self.warn(f"can't accept connections: {error.strerror}")
            return
        try:
            sock.setblocking(False)
            connection = Connection(sock)
            connection.deadline = time.monotonic() + self._patience
            connection.send()
        except OSError:
            sock.close()
            return
        with self._lock:
            wrong = self._too_many(connection)
            if not wrong:
                self._connections[connection.fd] = connection
        if wrong:
            connection.close()
            self.warn(f"pid {connection.pid}: connection refused: {wrong}")
            return
        if pr_helper_connect.enabled:
            pr_helper_connect(connection.pid)
        with self._lock:
            self._epoll.register(connection.fd, select.EPOLLIN | select.EPOLLONESHOT)

    def _too_many(self, connection: Connection) -> str:
        total, of_a_process = self._limits
        if len(self._connections) >= total:
            return f"there are {total} connections"
        pid = connection.pid
        if pid and sum(each.pid == pid for each in self._connections.values()) >= of_a_process:
            return f"that process has {of_a_process} connections"
        return ""

    def _shut_down_late(self) -> None:
        """Have connections end whose client takes too long; a thread closes them."""
        now = time.monotonic()
        with self._lock:
            for connection in self._connections.values():
                if connection.deadline is not None and connection.deadline <= now:
                    connection.deadline = None
                    connection.shut_down()

    def _finish(self, grace: float) -> bool:
        self._listener.close()
        with self._lock:
            for connection in self._connections.values():
                if not connection.is_running:
                    connection.shut_down()
        is_complete = self._wait_until(lambda: not self._connections, grace)
        os.eventfd_write(self._end, 1)
        if is_complete and self._wait_until(lambda: not self._threads, grace):
            fds, self._wakeup, self._end = (self._wakeup, self._end), -1, -1
            self._epoll.close()
            for fd in fds:
                os.close(fd)
        return is_complete

    def _wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait for what threads do; False: that takes too long."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        while True:
            with self._lock:
                if condition():
                    return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll.poll(left * 1000 + 1)
            with suppress(BlockingIOError):
                os.eventfd_read(self._wakeup)

    def _wake(self) -> None:
        if (fd := self._wakeup) >= 0:  # the server has not ended
            with suppress(BlockingIOError):
                os.eventfd_write(fd, 1)

    # The threads that serve.

    def _start_thread(self) -> None:
        with self._lock:
            self._threads += 1
        thread = threading.Thread(target=self._work, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            with self._lock:
                self._threads -= 1
            self.warn(f"can't start a thread: {error}")

    def _work(self) -> None:
        # Signals are for the main thread, which wakes up then.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            with self._lock:
                self._waiting += 1
            events = self._epoll.poll(_IDLE, 1)
            with self._lock:
                self._waiting -= 1
                is_last = not self._waiting
                connection = self._connections.get(events[0][0]) if events else None
                ends = bool(events) and events[0][0] == self._end
                if ends or (not events and self._threads > _SPARE and not is_last):
                    self._threads -= 1
                    self._wake()
                    return
            if connection is not None:
                if is_last:
                    self._start_thread()
                self._serve(connection)

    def _serve(self, connection: Connection) -> None:
        """Do what there is to do for a client, for one command at most."""
        try:
            if self._advance(connection):
                self._arm(connection)
                return
        except ProtocolError as error:
            if not self._quiet:
                self.warn(f"pid {connection.pid}: {error}")
        except OSError:
            pass  # the client is gone
        except Exception as error:
            with self._log_lock:
                self._log.error("pid %d: internal error", connection.pid, exc_info=error)
        self._close(connection)

    def _advance(self, connection: Connection) -> bool:
        """Go on as far as possible; False: the connection is to be closed."""
        if connection.has_unsent:
            connection.send()
        while not connection.has_unsent:
            try:
                is_there, request = connection.receive()
            except BlockingIOError:
                break
            if request is not None:
                if not self._answer(connection, request):
                    return False
                break
            if not is_there:
                return False
        return True

    def _answer(self, connection: Connection, request: Request) -> bool:
        """Carry out a command and send the reply; False: the helper is about to end."""
        try:
            with self._lock:
                if self._is_stopping:
                    return False
                connection.is_running, connection.deadline = True, None
            reply = self._execute(request)
        finally:
            try:
                os.close(request.fd)
            except OSError:
                pass  # of what was written to it earlier
        if pr_helper_command.enabled:
            pr_helper_command(connection.pid, request.cdb.hex(), reply.status, len(reply.data))
        connection.send(reply.encode(request.length))
        with self._lock:
            connection.is_running = False
            return not self._is_stopping

    def _arm(self, connection: Connection) -> None:
        """Wait for the next event of a connection."""
        events = select.EPOLLOUT if connection.has_unsent else select.EPOLLIN
        with self._lock:
            if connection.is_idle:
                connection.deadline = None
                is_new = False
            else:
                is_new = connection.deadline is None
                if is_new:
                    connection.deadline = time.monotonic() + self._patience
            self._epoll.modify(connection.fd, events | select.EPOLLONESHOT)
        if is_new:
            self._wake()

    def _close(self, connection: Connection) -> None:
        with self._lock:
            del self._connections[connection.fd]
            self._epoll.unregister(connection.fd)
        connection.close()
        if pr_helper_disconnect.enabled:
            pr_helper_disconnect(connection.pid)
        if self._is_stopping:
            self._wake()

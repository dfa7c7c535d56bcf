# SPDX-License-Identifier: Apache-2.0
"""Serves clients: one thread accepts, and each connection has a thread.

A connection's thread waits for a command, carries it out and answers: no command is handed over
between threads, and one that finds its command sent and its reply read makes no system call but
those of the command. Each system call on a client's descriptor may block for as long as the client
likes, closing it included (think of a file of a FUSE file system): only that client waits then.
Connections are limited, in all and for each client process.

A client that has begun a message, or doesn't read its reply, has `patience` seconds for all of it.
One that owes nothing may stay for ever, as with QEMU's helper.

The lock guards the table of connections, and closing.
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

from vhostblk.errors import reason
from vhostblk.pr.connection import Connection
from vhostblk.pr.trace import pr_helper_command, pr_helper_connect, pr_helper_disconnect
from vhostblk.ratelimit import RateLimitedLogger
from vhostblk.reservations.errors import ProtocolError
from vhostblk.reservations.wire import GREETING

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
#: Seconds without accepting after that has failed: there are too many open files, say. At the end,
#: seconds between looks at connections.
_PAUSE = 0.5
#: A thread needs little, and there may be many.
_STACK = 256 << 10


class Server:
    """Serves the clients of one listening socket until `stop` is called."""

    def __init__(
        self,
        listener: socket.socket,
        execute: Callable[[Request], Reply],
        connect: Callable[[socket.socket, float], Connection] = Connection,
        *,
        quiet: bool = False,
        patience: float = PATIENCE,
        max_connections: int = MAX_CONNECTIONS,
        max_of_a_process: int = MAX_OF_A_PROCESS,
    ) -> None:
        """`execute` carries commands out, in many threads; `quiet`: don't log clients' errors.

        `connect` makes a connection of a client's socket; a compiled one carries out most commands
        itself.
        """
        self._listener = listener
        self._execute = execute
        self._connect = connect
        self._quiet = quiet
        self._patience = patience
        self._limits = max_connections, max_of_a_process
        self._log = RateLimitedLogger(logger, "")
        self._log_lock = threading.Lock()
        self._lock = threading.Lock()
        self._connections: dict[int, Connection] = {}
        self._is_stopping = False
        self._paused_until = 0.0
        self._threads = 0
        #: A byte in this pipe wakes the thread that accepts. `_waker` is its end for writing.
        self._wakeup, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self, grace: float) -> bool:
        """Serve until `stop`; then wait for commands, `grace` seconds at most.

        Returns whether all of them have ended.
        """
        former = threading.stack_size(_STACK)
        in_main = threading.current_thread() is threading.main_thread()
        if in_main:
            # Without, a signal that comes just before poll(2) would not end it.
            signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        try:
            poll = select.poll()
            poll.register(self._wakeup, select.POLLIN)
            while not self._is_stopping:
                self._wait(poll)
            return self._finish(grace)
        finally:
            threading.stack_size(former)
            if in_main:
                signal.set_wakeup_fd(-1)

    def close(self) -> None:
        """Close what is left open once all commands have ended; `stop` must not be called again."""
        for fd in (self._wakeup, self._waker):
            os.close(fd)

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
        pause = self._paused_until - time.monotonic()
        poll.register(self._listener, 0 if pause > 0 else select.POLLIN)
        for fd, _ in poll.poll(pause * 1000 + 1 if pause > 0 else None):
            if fd == self._wakeup:
                self._clear_wakeup()
            elif not self._is_stopping:
                self._accept()

    def _clear_wakeup(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._wakeup, select.PIPE_BUF)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            self._paused_until = time.monotonic() + _PAUSE
            self.warn(f"can't accept connections: {reason(error)}")
            return
        try:
            connection = self._connect(sock, self._patience)
            connection.send(GREETING)
        except OSError:
            sock.close()
            return
        with self._lock:
            wrong = self._too_many(connection)
            if not wrong:
                self._connections[connection.fd] = connection
        wrong = wrong or self._start(connection)
        if wrong:
            connection.close()
            self.warn(f"pid {connection.pid}: connection refused: {wrong}")

    def _start(self, connection: Connection) -> str:
        """Start a connection's thread; return why that can't be done."""
        with self._lock:
            self._threads += 1
        thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
        # Signals are for the main thread, which wakes up then.
        former = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            thread.start()
        except RuntimeError as error:
            with self._lock:
                self._threads -= 1
                del self._connections[connection.fd]
            return str(error)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        return ""

    def _too_many(self, connection: Connection) -> str:
        total, of_a_process = self._limits
        if len(self._connections) >= total:
            return f"there are {total} connections"
        pid = connection.pid
        if pid and sum(each.pid == pid for each in self._connections.values()) >= of_a_process:
            return f"that process has {of_a_process} connections"
        return ""

    def _finish(self, grace: float) -> bool:
        self._listener.close()
        deadline = time.monotonic() + grace
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        while True:
            with self._lock:
                if not self._threads:
                    return True
                for connection in self._connections.values():
                    connection.end()
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            # Connections get stuck without telling.
            poll.poll(min(left, _PAUSE) * 1000 + 1)
            self._clear_wakeup()

    def _wake(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._waker, b"\0")

    # The threads of connections.

    def _serve(self, connection: Connection) -> None:
        """Serve a client until it goes."""
        if pr_helper_connect.enabled:
            pr_helper_connect(connection.pid)
        try:
            request = connection.receive()
            while request is not None and self._answer(connection, request):
                request = connection.receive()
        except ProtocolError as error:
            if not self._quiet:
                self.warn(f"pid {connection.pid}: {error}")
        except OSError:
            pass  # the client is gone
        except Exception as error:
            with self._log_lock:
                self._log.error("pid %d: internal error", connection.pid, exc_info=error)
        with self._lock:
            del self._connections[connection.fd]
        connection.close()
        if pr_helper_disconnect.enabled:
            pr_helper_disconnect(connection.pid)
        with self._lock:
            self._threads -= 1
            if self._is_stopping:
                self._wake()

    def _answer(self, connection: Connection, request: Request) -> bool:
        """Carry out a command and send the reply; False: the helper is about to end."""
        try:
            if self._is_stopping:
                return False
            reply = self._execute(request)
        finally:
            try:
                os.close(request.fd)
            except OSError:
                pass  # of what was written to it earlier
        if pr_helper_command.enabled:
            pr_helper_command(connection.pid, request.cdb.hex(), reply.status, len(reply.data))
        connection.send(reply.encode(request.length))
        return not self._is_stopping

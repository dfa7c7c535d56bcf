# SPDX-License-Identifier: Apache-2.0
"""A monitor: QMP for the peers of a character device, one client after the other.

A monitor runs on the event loop, in turns. A *turn* parses a slice of the client's input and begins
a few requests at most; then other users of the loop get their turns. Commands run in tasks. A
command that has begun is completed even if its client disconnects; then its reply is dropped.

The memory for a client is bounded. Its input is read only while there is room for requests and no
reply is queued. Each command adds at most one reply. Events are dropped while the character device
accepts no more data.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import deque
from contextlib import nullcontext
from typing import TYPE_CHECKING

from vhostblk.errors import is_internal, log_failure, os_error
from vhostblk.qmp import wire
from vhostblk.qmp.errors import QmpError
from vhostblk.qmp.registry import COMMANDS, as_json
from vhostblk.qmp.session import CAPABILITIES, Call, Request, Session
from vhostblk.ratelimit import RateLimitedLogger
from vhostblk.trace import points as trace

if TYPE_CHECKING:
    from vhostblk.chardev.base import Chardev
    from vhostblk.daemon import Daemon
    from vhostblk.events import Event

logger = logging.getLogger(__name__)

#: Limits of a turn: bytes parsed (10 ms for the worst garbage), and requests begun.
SLICE = 4096
REQUESTS_A_TURN = 16

#: Maximum number of commands of one client that run at once, including out-of-band ones.
MAX_COMMANDS = 16


class Monitor:
    """The front-end of `chardev`; in-band commands wait for `dispatcher`."""

    def __init__(
        self,
        daemon: Daemon,
        chardev: Chardev,
        dispatcher: asyncio.Lock,
        *,
        pretty: bool = False,
        takes_commands: bool = True,
    ) -> None:
        self._daemon = daemon
        self._chardev = chardev
        self._dispatcher = dispatcher
        self._pretty = pretty
        self._log = RateLimitedLogger(logger, f"monitor '{chardev.label}': ")
        #: None if there is no client.
        self._session: Session | None = None
        #: Input from the client that is not parsed yet.
        self._input = b""
        #: Replies that the character device has refused for now.
        self._unsent: deque[bytes] = deque()
        self._turn: asyncio.Handle | None = None
        self._commands: set[asyncio.Task[None]] = set()
        #: Otherwise clients are greeted, but their commands are not read yet.
        self._takes_commands = takes_commands

    def start(self) -> None:
        """Begin to serve; raises ChardevError if the device is in use."""
        self._chardev.attach(self)

    def take_commands(self) -> None:
        """Begin to take commands."""
        self._takes_commands = True
        self._schedule()

    async def stop_commands(self, patience: float) -> None:
        """Take no more commands; cancel those that take longer than `patience` seconds."""
        self._takes_commands = False
        running = set(self._commands) - {asyncio.current_task()}
        if running:
            _, pending = await asyncio.wait(running, timeout=patience)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def close(self) -> None:
        """Leave the character device."""
        self._chardev.detach()
        self.closed()

    def tell(self, event: Event) -> None:
        """Send an event to the client, if it has negotiated and reads its input."""
        if self._session is None or not self._session.negotiated:
            return
        data = wire.encode(wire.event(event), pretty=self._pretty)
        if self._unsent or not self._chardev.write(data):
            self._log.warning("the client does not read; it is not told of %s", event.name)

    # Callbacks of the character device.

    def opened(self) -> None:
        """Greet a client."""
        self._session = Session(COMMANDS)
        self._send(wire.greeting(CAPABILITIES))
        self._schedule()

    def received(self, data: bytes) -> None:
        """Add input from the client."""
        self._input += data
        self._take_turn()

    def writable(self) -> None:
        """Send the queued replies."""
        while self._unsent and self._chardev.write(self._unsent[0]):
            self._unsent.popleft()
        self._schedule()

    def closed(self) -> None:
        """Forget a client."""
        self._session = None
        self._input = b""
        self._unsent.clear()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    # Requests.

    def _schedule(self) -> None:
        if self._turn is None and self._session is not None:
            self._turn = asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        """Begin requests within the limits; then read more input, or schedule another turn."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        session = self._session
        if session is None or not self._takes_commands:
            self._chardev.pause_reading()
            return
        if self._input and session.wants_input:
            session.receive(self._input[:SLICE])
            self._input = self._input[SLICE:]
        for _ in range(REQUESTS_A_TURN):
            if not self._has_room:
                break
            request = session.next()
            if request is None:
                break
            self._begin(session, request)
            if self._session is not session:
                return  # the greeting of the next client has scheduled a turn
        else:
            self._schedule()
        if not (self._has_room and session.wants_input):
            self._chardev.pause_reading()
        elif self._input:
            self._chardev.pause_reading()
            self._schedule()
        else:
            self._chardev.resume_reading()

    @property
    def _has_room(self) -> bool:
        """Whether the client may cause more replies; if not, an event will schedule a turn."""
        return not self._unsent and len(self._commands) < MAX_COMMANDS

    def _begin(self, session: Session, request: Request) -> None:
        if trace.handle_qmp_command.enabled:
            trace.handle_qmp_command(self._chardev.label, as_json(request.value))
        try:
            call = session.check(request)
        except Exception as error:
            self._reply(session, self._failure(error, "a request", request.ids))
            session.finished(request)
            return
        task = asyncio.create_task(
            self._execute(session, request, call), name=f"QMP command {call.command.name}"
        )
        self._commands.add(task)
        task.add_done_callback(self._ended)
        task.add_done_callback(log_failure)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._commands.discard(task)
        self._schedule()

    async def _execute(self, session: Session, request: Request, call: Call) -> None:
        try:
            band = (
                trace.monitor_qmp_cmd_out_of_band
                if request.out_of_band
                else trace.monitor_qmp_cmd_in_band
            )
            if band.enabled:
                band(call.command.name)
            async with nullcontext() if request.out_of_band else self._dispatcher:
                answer = await call.command.execute(self._daemon, session, call.arguments)
            message = wire.success(answer, request.ids)
        except BaseException as error:  # also what a plug-in raises: each command has a reply
            message = self._failure(error, f"command {call.command.name}", request.ids)
        self._reply(session, message)
        session.finished(request)

    # Replies.

    def _failure(self, error: BaseException, what: str, ids: wire.Message) -> wire.Message:
        """Return the reply to a request that failed."""
        if isinstance(error, RecursionError):
            error = QmpError("Nested too deeply")
        elif isinstance(error, asyncio.CancelledError):
            error = os_error(errno.ECANCELED)
        elif is_internal(error):
            self._log.error("%s failed", what, exc_info=error)
        return wire.failure(error, ids)

    def _reply(self, session: Session, message: wire.Message) -> None:
        if session is self._session:
            self._send(message)

    def _send(self, message: wire.Message) -> None:
        try:
            data = wire.encode(message, pretty=self._pretty)
        except Exception as error:
            if isinstance(error, RecursionError):
                error = QmpError("QMP input member 'id' is nested too deeply")
            data = wire.encode(self._failure(error, "a reply", {}), pretty=self._pretty)
        if trace.monitor_qmp_respond.enabled:
            trace.monitor_qmp_respond(self._chardev.label, data.decode().rstrip())
        if self._unsent or not self._chardev.write(data):
            self._unsent.append(data)

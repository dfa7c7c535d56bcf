# SPDX-License-Identifier: Apache-2.0
"""The asyncio shell around the session: one listening socket, one front-end at a time.

One task does everything, strictly in order: accept, read a message, carry it out, answer, read the
next one; when the front-end leaves, reset the backend; accept the next front-end, which has been
waiting in the backlog. Work for the backend is never cancelled: `stop` ends waiting for the
socket, and then waits for what the backend is doing.

Nothing is scheduled for a message that has arrived already: reads are tried first and the loop is
entered only when they would block, or after `_MESSAGES_A_TURN`, so that a front-end that never
stops talking can't keep others from being served.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from vhostblk.errors import reason
from vhostblk.net.listener import listen
from vhostblk.ratelimit import RateLimitedLogger
from vhostblk.trace import points as trace
from vhostblk.vhost_user.carried import Carried
from vhostblk.vhost_user.codec import FdList, MessageDecoder, Part
from vhostblk.vhost_user.errors import ProtocolError, VhostUserError
from vhostblk.vhost_user.journal import Journal
from vhostblk.vhost_user.layout import HEADER, MAX_FDS, Request
from vhostblk.vhost_user.restate import as_message
from vhostblk.vhost_user.session import Session
from vhostblk.virtqueue.errors import SetupError

if TYPE_CHECKING:
    from vhostblk.net.listener import ListenAddress, Listener
    from vhostblk.vhost_user.backend import Backend
    from vhostblk.vhost_user.codec import Message
    from vhostblk.vhost_user.rules import Answer

logger = logging.getLogger(__name__)

_ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_FDS * 4)

#: Messages handled before the loop gets a chance to run something else.
_MESSAGES_A_TURN = 64

#: Seconds that a front-end may take for its first message, for the rest of a message that it has
#: begun, and for taking a reply; others wait for their turn meanwhile. Between messages it may be
#: silent for ever: that is what front-ends of running guests do.
PATIENCE = 10.0

#: Seconds until accepting is tried again when the process is out of file descriptors.
_ACCEPT_RETRY = 1.0


class _StoppedError(Exception):
    """`stop` was called while the server waited for the socket."""


class _FrontendGoneError(Exception):
    """The front-end closed its end, between two messages."""


class _ReplayError(VhostUserError):
    """What a front-end said to another server can't be said here."""


class _SuspendedError(Exception):
    """`suspend` was called while the server waited for the socket."""

    def __init__(self) -> None:
        super().__init__()
        #: What has to be sent of a reply.
        self.unsent = Part()


class VhostUserServer:
    """Serves one `Backend` to the front-ends that connect to one address."""

    def __init__(self, address: ListenAddress, backend: Backend, name: str) -> None:
        """Prepare; `name` tells the export in the log."""
        self._address = address
        self._backend = backend
        self._name = name
        self._log = RateLimitedLogger(logger, f"export '{name}': ")
        self._listener: Listener | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._stopping = False
        #: Why the front-end is to be disconnected; the backend's own reason.
        self._unwanted: str | None = None
        #: A front-end is being served.
        self.connected = False
        #: Set where the session may have to move.
        self._journal: Journal | None = None
        self._suspending = False
        #: The front-end of a session that was suspended.
        self._kept: Carried | None = None
        #: Another process may still take the session back, until `resume`.
        self._held = False

    @property
    def running(self) -> bool:
        """Tell whether front-ends can connect."""
        return self._listener is not None

    @property
    def made_files(self) -> list[str]:
        """The files that `stop` will remove."""
        path = None if self._listener is None else self._listener.path
        return [] if path is None else [path]

    async def start(self, carried: Carried | None = None, *, movable: bool = False) -> None:
        """Listen; front-ends may connect once this returns. Raises ListenError.

        With `carried`, continue where another server has stopped, once `resume` is called; if that
        is impossible, close it and raise VhostUserError. `movable`: `suspend` may be called.
        """
        self._stopping = self._suspending = False
        self._held = carried is not None
        self._kept = None
        self._journal = Journal() if movable else None
        loop = asyncio.get_running_loop()
        listener = listen(self._address) if carried is None else carried.listener
        if carried is not None:
            carried.replayed = loop.create_future()
        self._listener = listener
        self._task = loop.create_task(
            self._run(listener, carried), name=f"vhost-user server {self._name}"
        )
        if carried is not None and carried.replayed is not None:
            await asyncio.wait({self._task, carried.replayed}, return_when=asyncio.FIRST_COMPLETED)
            if self._task.done():
                await self._task

    def resume(self) -> None:
        """Serve front-ends, after a start with `carried`: no other process serves them any more."""
        self._held = False
        if self._waiting is not None:
            _wake(self._waiting)

    async def stop(self) -> None:
        """Disconnect the front-end, reset the backend, stop listening, remove the socket file."""
        self._stopping = True
        self._backend.abandon()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(_StoppedError())
        task, self._task = self._task, None
        if task is not None:
            await task

    async def suspend(self) -> Carried:
        """Stop with all requests finished, and leave the front-end connected.

        It waits for the message that is being carried out, but for no front-end: one may be in the
        middle of a message. The backend is as new afterwards, and has been told that the vrings
        stop. Raises VhostUserError while a post-copy migration to here is under way. Then, and if
        this is cancelled, the server goes on.
        """
        assert self._listener is not None
        assert self._task is not None
        assert self._journal is not None
        if not self._journal.movable:
            raise VhostUserError(f"export '{self._name}': a post-copy migration is under way")
        task = self._task
        self._suspending = True
        if self._waiting is not None:
            _wake(self._waiting)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            if not task.done():
                self._suspending = False
                raise
        await task
        carried, self._kept = self._kept or Carried(self._listener, None, ()), None
        self._task = self._listener = self._journal = None
        return carried

    def _check_suspended(self) -> None:
        """Raise _SuspendedError where the session is to be suspended."""
        if self._suspending:
            raise _SuspendedError

    async def _run(self, listener: Listener, carried: Carried | None) -> None:
        try:
            while True:
                with suppress(_StoppedError, _SuspendedError):
                    await self._serve_all(listener, carried)
                if self._stopping or self._suspending:
                    return
                # `suspend` was cancelled.
                carried, self._kept = self._kept, None
                if carried is not None:
                    carried.required = False
        finally:
            if not self._suspending:
                if self._kept is not None:
                    self._kept.close()
                    self._kept = None
                listener.close()
                self._listener = None

    async def _serve_all(self, listener: Listener, carried: Carried | None) -> None:
        """Serve one front-end after the other, until `stop` or `suspend` is called."""
        if carried is not None:
            await self._resume(carried)
        while not self._stopping and not self._suspending:
            connection = await self._accept(listener.socket)
            if connection is not None:
                with connection:
                    await self._serve(connection)
                await asyncio.sleep(0)  # others get their turn in a storm of connections, too

    async def _resume(self, carried: Carried) -> None:
        """Serve the front-end that was carried here, if there is one."""
        try:
            if carried.connection is not None:
                with carried.connection as connection:
                    connection.setblocking(False)
                    await self._serve(connection, carried)
            if carried.replayed is not None and not carried.replayed.done():
                carried.replayed.set_result(None)
            await self._wait_resumed()
        finally:
            carried.close_said()
            carried.close_parts()

    async def _wait_resumed(self) -> None:
        """Wait for `resume`: a process that takes the session back would miss what is read here."""
        while self._held:
            await self._wait(asyncio.get_running_loop().create_future())

    async def _accept(self, listening: socket.socket) -> socket.socket | None:
        """Wait for a front-end; None where it was gone again, or nothing can be accepted now."""
        try:
            connection, _ = listening.accept()
        except BlockingIOError:
            await self._ready(listening, writing=False)
        except ConnectionAbortedError:
            pass
        except OSError as error:  # out of descriptors or memory: the front-end stays in the backlog
            self._log.warning("can't accept a front-end: %s", reason(error))
            await self._pause(_ACCEPT_RETRY)
        else:
            connection.setblocking(False)
            return connection
        return None

    async def _serve(self, connection: socket.socket, carried: Carried | None = None) -> None:
        """Serve one front-end until it leaves, breaks the rules, or `stop` is called.

        With `carried` first say again what it has said; raises VhostUserError where that fails.
        """
        word = "connected" if carried is None else "taken over"
        logger.info("export '%s': front-end %s", self._name, word)
        if trace.vhost_user_connect.enabled:
            trace.vhost_user_connect(self._name)
        session = Session(self._backend, moved=carried is not None)
        decoder = MessageDecoder()
        self.connected = True
        self._unwanted = None
        self._backend.set_disconnect(self._disconnect)
        try:
            await self._backend.prepare()
            if carried is not None:
                await self._replay(session, carried)
                decoder.give_part(carried.received)
                await self._send(connection, carried.unsent)
            await self._converse(connection, session, decoder, silent=carried is None)
        except _FrontendGoneError:
            logger.info("export '%s': front-end disconnected", self._name)
        except _ReplayError as error:
            if carried is None or carried.required:
                raise _ReplayError(f"export '{self._name}': {error}") from error
            self._log.warning("front-end disconnected: %s", error)
        except (SetupError, OSError) as error:  # OSError: the front-end has closed its end
            self._log.warning("front-end disconnected: %s", reason(error))
        except _StoppedError:
            raise
        except _SuspendedError as suspended:
            await self._keep(connection, session, decoder.take_part(), suspended.unsent)
            raise
        except Exception as error:
            self._log.error("front-end disconnected: internal error", exc_info=error)
        finally:
            decoder.close()
            session.close()
            await self._reset()
            self.connected = False
            if self._journal is not None:
                self._journal.close()
            if trace.vhost_user_disconnect.enabled:
                trace.vhost_user_disconnect(self._name)

    async def _converse(
        self,
        connection: socket.socket,
        session: Session,
        decoder: MessageDecoder,
        *,
        silent: bool,
    ) -> None:
        """Carry out messages; `silent`: there has been none so far."""
        while True:
            for _ in range(_MESSAGES_A_TURN):
                message = await self._receive(connection, decoder, silent=silent)
                silent = False
                await self._handle(connection, session, message)
            await asyncio.sleep(0)

    async def _replay(self, session: Session, carried: Carried) -> None:
        """Replay the messages of `carried`, then wait for `resume`; raises _ReplayError."""
        config_changed = False
        try:
            for said in carried.said:
                answer = await self._carry_out(session, as_message(said))
                answer.fds.close()
                if answer.failure is not None:
                    raise _ReplayError(answer.failure)
                if said.request == Request.GET_CONFIG:  # the payload is the former reply
                    config_changed = answer.reply[HEADER.size :] != said.payload
        except (SetupError, OSError) as error:
            raise _ReplayError(reason(error)) from error
        carried.close_said()
        if carried.replayed is not None:
            carried.replayed.set_result(None)
        await self._wait_resumed()
        session.restated(config_changed=config_changed)

    async def _keep(
        self, connection: socket.socket, session: Session, received: Part, unsent: Part
    ) -> None:
        """Stop the vrings; keep the connection, and the messages that restore its session."""
        assert self._journal is not None
        assert self._listener is not None
        kept = Carried(self._listener, None, (), received, unsent)
        try:
            state = await session.suspend()
            kept.connection = connection.dup()
        except (SetupError, OSError) as error:
            self._log.warning("front-end disconnected: %s", reason(error))
            kept.close_parts()
        else:
            kept.said = self._journal.hand_out(state)
            self._kept = kept

    async def _reset(self) -> None:
        try:
            self._backend.set_disconnect(None)
            self._backend.set_channel(None)
            await self._backend.reset()
        except Exception as error:
            self._log.error("reset failed", exc_info=error)

    def _disconnect(self, why: str) -> None:
        """End the session: at once where it waits for the socket, else after the message."""
        self._unwanted = why
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(VhostUserError(why))

    async def _handle(self, connection: socket.socket, session: Session, message: Message) -> None:
        logger.debug("export '%s': %s", self._name, message.name)
        if trace.vhost_user_read.enabled:
            size, fds = len(message.payload), len(message.fds)
            trace.vhost_user_read(self._name, message.name, message.request, size, fds)
        answer = await self._carry_out(session, message)
        if trace.vhost_user_write.enabled:
            trace.vhost_user_write(
                self._name, message.name, message.request, len(answer.reply), answer.failure
            )
        if answer.failure is not None:
            self._log.warning("%s", answer.failure)
        if answer.remark is not None:
            self._log.warning("%s", answer.remark)
        await self._send(connection, Part(answer.reply, answer.fds))

    async def _carry_out(self, session: Session, message: Message) -> Answer:
        """Carry out a message, and note it where sessions may have to move."""
        if self._journal is None:
            return await session.handle(message)
        try:
            copy = self._journal.copy(message)
        except OSError:
            message.fds.close()
            raise
        try:
            answer = await session.handle(message)
        except BaseException:
            copy.fds.close()
            raise
        reply = answer.reply[HEADER.size :] if answer.failure is None else None
        self._journal.note(copy, reply, session.state)
        return answer

    async def _send(self, connection: socket.socket, reply: Part) -> None:
        """Send bytes; the descriptors go with the first of them and are closed here."""
        deadline: float | None = None
        data, fds = reply.data, reply.fds
        try:
            while data:
                try:
                    sent = connection.sendmsg([data], fds.ancillary(), socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    self._check_suspended()
                    deadline = deadline or self._deadline()
                    await self._ready(connection, writing=True, deadline=deadline)
                else:
                    data = data[sent:]
                    fds.close()
        except _SuspendedError as suspended:
            suspended.unsent = Part(data, FdList(fds.take_all()))
            raise
        finally:
            fds.close()

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + PATIENCE

    async def _receive(
        self, connection: socket.socket, decoder: MessageDecoder, *, silent: bool
    ) -> Message:
        """Return the next message; `silent`: there has been none so far."""
        deadline = self._deadline() if silent else None
        while True:
            if self._stopping:
                raise _StoppedError
            if self._unwanted is not None:
                raise VhostUserError(self._unwanted)
            self._check_suspended()
            try:
                data, ancillary, flags, _ = connection.recvmsg(
                    decoder.wanted, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                if decoder.mid_message:
                    deadline = deadline or self._deadline()
                await self._ready(connection, writing=False, deadline=deadline)
                continue
            fds = _descriptors(ancillary)
            if flags & socket.MSG_CTRUNC:
                fds.close()
                raise ProtocolError(
                    f"file descriptors lost: more than {MAX_FDS}, or too many open files here"
                )
            if not data:
                fds.close()
                if decoder.mid_message:
                    raise ProtocolError("the connection ended in the middle of a message")
                raise _FrontendGoneError
            message = decoder.feed(data, fds.take_all())
            if message is not None:
                return message

    async def _ready(
        self, sock: socket.socket, *, writing: bool, deadline: float | None = None
    ) -> None:
        """Wait until the socket can be read or written.

        Raises _StoppedError at `stop`, VhostUserError at the deadline (of the loop's clock).
        """
        loop = asyncio.get_running_loop()
        fd = sock.fileno()
        add, remove = (
            (loop.add_writer, loop.remove_writer)
            if writing
            else (loop.add_reader, loop.remove_reader)
        )
        waiting = loop.create_future()
        add(fd, _wake, waiting)
        timer = None if deadline is None else loop.call_at(deadline, _give_up, waiting)
        try:
            await self._wait(waiting)
        finally:
            remove(fd)
            if timer is not None:
                timer.cancel()

    async def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()
        timer = loop.call_later(seconds, _wake, waiting)
        try:
            await self._wait(waiting)
        finally:
            timer.cancel()

    async def _wait(self, waiting: asyncio.Future[None]) -> None:
        if self._stopping:
            raise _StoppedError
        self._waiting = waiting
        try:
            await waiting
        finally:
            self._waiting = None


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _give_up(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_exception(VhostUserError(f"it has stalled for {PATIENCE:.0f} seconds"))


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> FdList:
    fds = FdList()
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(data) // 4 * 4
            fds.extend(memoryview(data[:whole]).cast("i"))
    return fds

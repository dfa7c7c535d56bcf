# SPDX-License-Identifier: Apache-2.0
"""The conversation with a client, without I/O: bytes in, requests out.

Rules, as in QEMU's monitor (`monitor/qmp.c`, `qapi/qmp-dispatch.c`):

- Until `qmp_capabilities` has succeeded, other commands are not available and no events are sent.
- In-band commands are executed one after the other; errors of malformed requests are replied to in
  the same order. Without the capability "oob", no input is read while a command is executed, so its
  reply comes before the replies to all later commands.
- With "oob", up to `QUEUE_LENGTH` in-band commands wait, and `exec-oob` overtakes them. While this
  queue is full, no input is read, out-of-band commands included: clients must not fill the queue.

The loop around a session (`vhostblk.qmp.monitor`):

    session.receive(data)                   where session.wants_input
    while (request := session.next()):      executing = request
        call = session.check(request)       an exception: the reply
        ...                                 call the handler
        session.finished(request)           then next() may give the next one in band
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vhostblk.qmp.errors import CommandNotFoundError, QmpError
from vhostblk.schema.convert import from_json
from vhostblk.schema.json_stream import JsonError, JsonStream

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vhostblk.qmp.registry import Command

#: Maximum number of in-band requests that wait while one is executed, with "oob".
QUEUE_LENGTH = 8

#: Capabilities that a client may enable.
CAPABILITIES = ("oob",)


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A request of the client: a JSON value, or the error in it."""

    value: object
    error: JsonError | None = None

    @property
    def out_of_band(self) -> bool:
        """Whether it uses `exec-oob`; whether the command allows this is not checked yet."""
        value = self.value
        return isinstance(value, dict) and "exec-oob" in value and "execute" not in value

    @property
    def ids(self) -> dict[str, Any]:
        """The members that the reply must repeat."""
        value = self.value
        return {"id": value["id"]} if isinstance(value, dict) and "id" in value else {}


@dataclass(frozen=True, slots=True)
class Call:
    """A request that can be executed; `arguments` is the command's struct."""

    command: Command
    arguments: Any


@dataclass(slots=True, eq=False)
class Session:
    """The state of a conversation."""

    commands: Mapping[str, Command]
    negotiated: bool = False
    #: The capabilities that the client has enabled.
    enabled: frozenset[str] = frozenset()
    _stream: JsonStream = field(default_factory=JsonStream)
    _queue: deque[Request] = field(default_factory=deque)
    _executing: Request | None = None

    @property
    def wants_input(self) -> bool:
        """Whether the session needs input: all earlier input is parsed and there is room."""
        return not self._stream.has_input and self._has_room

    def receive(self, data: bytes) -> None:
        """Add input from the client."""
        self._stream.feed(data)

    def next(self) -> Request | None:
        """Return the next request to execute; None if it waits for input or for a command."""
        while self._has_room:
            found = self._stream.next()
            if found is None:
                break
            if isinstance(found, JsonError):
                request = Request(None, found)
            else:
                request = Request(found[0])
                if request.out_of_band:
                    return request
            self._queue.append(request)
        if self._executing is None and self._queue:
            self._executing = self._queue.popleft()
            return self._executing
        return None

    def finished(self, request: Request) -> None:
        """Note that a request was replied to."""
        if request is self._executing:
            self._executing = None

    def check(self, request: Request) -> Call:
        """Check a request that is about to be executed; raises VhostblkError."""
        if request.error is not None:
            raise QmpError(str(request.error))
        name, arguments = self._parse(request.value)
        command = self.commands.get(name)
        if not self.negotiated and (command is None or not command.before_negotiation):
            raise CommandNotFoundError("Expecting capabilities negotiation with 'qmp_capabilities'")
        if command is None:
            raise CommandNotFoundError(f"The command {name} has not been found")
        if request.out_of_band and not command.allow_oob:
            raise QmpError(f"The command {name} does not support OOB")
        return Call(command, _convert(command, arguments))

    def negotiate(self, enable: Iterable[str]) -> None:
        """Enable capabilities and begin to serve; raises QmpError."""
        if self.negotiated:
            raise CommandNotFoundError(
                "Capabilities negotiation is already complete, command ignored"
            )
        self.enabled = frozenset(enable)
        self.negotiated = True

    @property
    def _has_room(self) -> bool:
        if "oob" in self.enabled:
            return len(self._queue) < QUEUE_LENGTH
        return self._executing is None and not self._queue

    def _parse(self, value: object) -> tuple[str, dict[str, object]]:
        """Return the command's name and arguments; raises QmpError."""
        if not isinstance(value, dict):
            raise QmpError("QMP input must be a JSON object")
        name_given_by = None
        for member, content in value.items():
            if member == "execute" or (member == "exec-oob" and "oob" in self.enabled):
                if not isinstance(content, str):
                    raise QmpError(f"QMP input member '{member}' must be a string")
                if name_given_by is not None:
                    raise QmpError(f"QMP input member '{member}' clashes with '{name_given_by}'")
                name_given_by = member
            elif member == "arguments":
                if not isinstance(content, dict):
                    raise QmpError("QMP input member 'arguments' must be an object")
            elif member != "id":
                raise QmpError(f"QMP input member '{member}' is unexpected")
        if name_given_by is None:
            raise QmpError("QMP input lacks member 'execute'")
        return value[name_given_by], value.get("arguments", {})


def _convert(command: Command, arguments: dict[str, object]) -> Any:
    schema, _ = command.types()
    if schema is None:
        for name in arguments:
            raise QmpError(f"Parameter '{name}' is unexpected")
        return None
    try:
        return from_json(schema, arguments)
    except RecursionError:
        raise QmpError("QMP input member 'arguments' is nested too deeply") from None

# SPDX-License-Identifier: Apache-2.0
"""The table of QMP commands, for dispatch and introspection.

A command is a coroutine function of the daemon and one schema struct (or none), registered with
`@command`:

    @command("block-export-del")
    async def block_export_del(daemon: Daemon, arguments: BlockExportDel) -> None: ...

The types are read from the annotations. The argument is a `QapiStruct` (whose members are the
command's arguments), a union of structs, or missing. The result is a struct, a list, a scalar or
None. A parameter called `monitor` gets the client's session.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from inspect import signature
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_type_hints

import msgspec

from vhostblk.errors import VhostblkError
from vhostblk.qmp.redaction import without_secrets
from vhostblk.trace.point import TracePoint, point

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vhostblk.daemon import Daemon
    from vhostblk.qmp.session import Session

#: Parameters of handlers that are not part of the schema.
_GIVEN = frozenset({"daemon", "monitor"})


@dataclass(frozen=True, slots=True)
class Command:
    """One QMP command."""

    name: str
    handler: Callable[..., Awaitable[Any]]
    #: May be executed out of band.
    allow_oob: bool = False
    #: QAPI features, "unstable" for x- commands.
    features: tuple[str, ...] = ()
    #: Usable before capabilities have been negotiated.
    before_negotiation: bool = False

    def types(self) -> tuple[Any, Any]:
        """Return the schemas of arguments (None: no arguments) and result (None: an empty object).

        The handler's module must have these types importable at run time.
        """
        return _types(self.handler)

    async def execute(self, daemon: Daemon, session: Session, arguments: Any) -> Any:
        """Call the handler with its parameters, and return its result."""
        enter, leave = _trace_points(self.name)
        if enter.enabled:
            enter(as_json(arguments))
        given = {"daemon": daemon, "monitor": session}
        try:
            answer = await self.handler(
                *(given.get(parameter, arguments) for parameter in _parameters(self.handler))
            )
        except Exception as error:
            if isinstance(error, VhostblkError):
                error.add_context(operation=self.name)
            if leave.enabled:
                leave(error, False)
            raise
        if leave.enabled:
            leave(as_json(answer), True)
        return answer


@functools.cache
def _trace_points(name: str) -> tuple[TracePoint, TracePoint]:
    """Return the points before a command (arguments) and after it (result, or error)."""
    suffix = name.replace("-", "_")
    return point(f"qmp_enter_{suffix}", "%s"), point(f"qmp_exit_{suffix}", "%s %d")


def as_json(value: Any) -> str:
    """Return a request, arguments or a result for a trace, without secrets."""
    try:
        shown = without_secrets(msgspec.to_builtins(value, enc_hook=str))
        return "{}" if value is None else msgspec.json.encode(shown).decode()
    except (RecursionError, UnicodeEncodeError):
        return "(not to be shown)"


@functools.cache
def _types(handler: Callable[..., Awaitable[Any]]) -> tuple[Any, Any]:
    # Only annotations of the schema are evaluated: `Daemon` need not be importable.
    annotations = {
        name: annotation
        for name, annotation in handler.__annotations__.items()
        if name not in _GIVEN
    }
    hints = get_type_hints(
        SimpleNamespace(__annotations__=annotations),
        globalns=getattr(handler, "__globals__", {}),
        include_extras=True,
    )
    answer = hints.pop("return", None)
    arguments = next(iter(hints.values()), None)
    return arguments, None if answer is type(None) else answer


@functools.cache
def _parameters(handler: Callable[..., Awaitable[Any]]) -> tuple[str, ...]:
    return tuple(signature(handler).parameters)


#: All commands by name.
COMMANDS: dict[str, Command] = {}

#: All events by name, with the struct of their data (None: none).
EVENTS: dict[str, Any] = {}


def command(
    name: str,
    *,
    allow_oob: bool = False,
    features: tuple[str, ...] = (),
    before_negotiation: bool = False,
) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]]:
    """Register a handler as command `name`."""

    def register(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        assert name not in COMMANDS, f"{name} registered twice"
        _trace_points(name)
        COMMANDS[name] = Command(name, handler, allow_oob, features, before_negotiation)
        return handler

    return register


def event(name: str, data: Any = None) -> None:
    """Register an event and the struct of its data, for introspection."""
    assert name not in EVENTS, f"{name} registered twice"
    EVENTS[name] = data

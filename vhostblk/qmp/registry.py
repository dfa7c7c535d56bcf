# SPDX-License-Identifier: Apache-2.0
"""What QMP commands there are: one table, from which the monitor dispatches and introspection
answers.

A command is a coroutine function of the daemon and one schema struct (or none), registered with
`@command`:

    @command("block-export-del")
    async def block_export_del(daemon: Daemon, arguments: BlockExportDel) -> None: ...

Its argument and return types are read from the annotations: a `QapiStruct` (whose members are the
command's arguments), a union of structs, or nothing; and a struct, a list, a scalar or None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


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
        """Return the schema of arguments (None: none) and of the answer (None: an empty object).

        The handler's module must have the types importable at run time.
        """
        hints = get_type_hints(self.handler)
        answer = hints.pop("return", None)
        hints.pop("daemon", None)
        hints.pop("monitor", None)
        arguments = next(iter(hints.values()), None)
        return arguments, None if answer is type(None) else answer


#: All commands by name.
COMMANDS: dict[str, Command] = {}

#: All events by name, with the struct of their data (None: none).
EVENTS: dict[str, Any] = {}


def command(
    name: str, *, allow_oob: bool = False, features: tuple[str, ...] = ()
) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]]:
    """Register a handler as command `name`."""

    def register(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        assert name not in COMMANDS, f"{name} registered twice"
        COMMANDS[name] = Command(name, handler, allow_oob, features)
        return handler

    return register


def event(name: str, data: Any = None) -> None:
    """Register an event and the struct of its data, for introspection."""
    assert name not in EVENTS, f"{name} registered twice"
    EVENTS[name] = data

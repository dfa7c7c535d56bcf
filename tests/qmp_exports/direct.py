# SPDX-License-Identifier: Apache-2.0
"""Runs QMP commands on a daemon without a monitor: arguments and answers as on the wire."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import msgspec

from vhostblk.errors import VhostblkError
from vhostblk.qmp.errors import error_class
from vhostblk.qmp.registry import COMMANDS
from vhostblk.schema.convert import from_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vhostblk.daemon import Daemon

for area in ("block_query", "exports", "images", "objects", "snapshot"):
    importlib.import_module(f"vhostblk.qmp.commands.{area}")


async def execute(daemon: Daemon, name: str, arguments: Mapping[str, object] | None = None) -> Any:
    """Run a command; return what the answer has in `return`. Raises VhostblkError."""
    command = COMMANDS[name]
    schema, _ = command.types()
    if schema is None:
        assert not arguments
        answer = await command.handler(daemon)
    else:
        answer = await command.handler(daemon, from_json(schema, dict(arguments or {})))
    return {} if answer is None else msgspec.to_builtins(answer)


async def refusal(
    daemon: Daemon, name: str, arguments: Mapping[str, object] | None = None
) -> tuple[str, str]:
    """Run a command that fails; return the class and the description."""
    try:
        answer = await execute(daemon, name, arguments)
    except VhostblkError as error:
        return error_class(error), str(error)
    raise AssertionError(f"{name} succeeded: {answer}")

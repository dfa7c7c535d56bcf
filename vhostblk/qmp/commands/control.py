# SPDX-License-Identifier: Apache-2.0
"""Commands on the monitor itself and on the daemon as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.qmp import wire
from vhostblk.qmp.registry import COMMANDS, EVENTS, command
from vhostblk.schema.base import UNSET
from vhostblk.schema.control import CommandInfo, QmpCapabilities, VersionInfo, VersionTriple
from vhostblk.schema.introspect import (  # noqa: TC001 (annotations are read at run time)
    SchemaInfo,
)

if TYPE_CHECKING:
    from vhostblk.daemon import Daemon
    from vhostblk.qmp.session import Session


@command("qmp_capabilities", before_negotiation=True)
async def qmp_capabilities(arguments: QmpCapabilities, monitor: Session) -> None:
    """End the negotiation, after which other commands are available."""
    enable = () if arguments.enable is UNSET else arguments.enable
    monitor.negotiate(capability.value for capability in enable)


@command("query-version")
async def query_version() -> VersionInfo:
    """Return the version."""
    return VersionInfo(qemu=VersionTriple(**wire.COMPATIBLE_WITH), package=wire.VERSION["package"])


@command("query-commands")
async def query_commands() -> list[CommandInfo]:
    """List the commands in reverse order of registration, as in QEMU."""
    return [CommandInfo(name=name) for name in reversed(COMMANDS)]


@command("query-qmp-schema")
async def query_qmp_schema() -> list[SchemaInfo]:
    """Return the schema of commands and events."""
    from vhostblk.schema.describe import describe

    return describe(COMMANDS.values(), EVENTS)


@command("quit")
async def quit_daemon(daemon: Daemon) -> None:
    """Shut the daemon down."""
    daemon.request_stop()

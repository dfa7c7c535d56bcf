# SPDX-License-Identifier: Apache-2.0
"""QMP's wire format (`docs/interop/qmp-spec.rst`): messages to the client, as bytes.

The other direction, JSON values from a stream of bytes, is `vhostblk.schema.json_stream`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from vhostblk.qmp.errors import description, error_class
from vhostblk.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhostblk.events import Event

Message = dict[str, Any]

#: The version of QEMU whose QMP this is; clients derive the available commands from it.
COMPATIBLE_WITH = {"major": 10, "minor": 0, "micro": 0}

VERSION: Message = {"qemu": COMPATIBLE_WITH, "package": f"vhostblk {__version__}"}


def greeting(capabilities: Iterable[str]) -> Message:
    """Return the first message of a conversation."""
    return {"QMP": {"version": VERSION, "capabilities": list(capabilities)}}


def success(value: object, ids: Message) -> Message:
    """Return the reply to a successful command; `ids` is the request's id, if it has one."""
    return {"return": {} if value is None else msgspec.to_builtins(value), **ids}


def failure(error: BaseException, ids: Message) -> Message:
    """Return the reply to a failed command."""
    return {"error": {"class": error_class(error), "desc": description(error)}, **ids}


def event(happened: Event) -> Message:
    """Return the message of an event."""
    seconds, microseconds = divmod(int(happened.timestamp * 1_000_000), 1_000_000)
    message: Message = {
        "timestamp": {"seconds": seconds, "microseconds": microseconds},
        "event": happened.name,
    }
    if happened.data is not None:
        message["data"] = msgspec.to_builtins(happened.data)
    return message


def encode(message: Message, *, pretty: bool) -> bytes:
    """Return a message as one line, or as indented lines.

    Raises RecursionError if an id is nested too deeply for Python.
    """
    text = json.dumps(message, indent=4 if pretty else None)
    return text.replace("\n", "\r\n").encode("ascii") + b"\r\n"

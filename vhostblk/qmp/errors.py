# SPDX-License-Identifier: Apache-2.0
"""Errors as QMP clients get them: a class and a description (`qapi/error.json`)."""

from __future__ import annotations

import errno
from asyncio import CancelledError

from vhostblk.errors import VhostblkError, reason
from vhostblk.objects.tree import PathNotFoundError
from vhostblk.objects.types import TypeNotFoundError


class QmpError(VhostblkError):
    """A request can't be understood, or what it asks for can't be done."""


class CommandNotFoundError(QmpError):
    """There is no such command, or not in this state of the conversation."""


#: `QapiErrorClass` of the kinds that clients tell apart. All others are a GenericError.
_CLASSES: dict[type[Exception], str] = {
    CommandNotFoundError: "CommandNotFound",
    PathNotFoundError: "DeviceNotFound",
    TypeNotFoundError: "DeviceNotFound",
}


def error_class(error: BaseException) -> str:
    """Return the class of the reply to a command that failed with `error`."""
    found = (name for kind, name in _CLASSES.items() if isinstance(error, kind))
    return next(found, "GenericError")


def is_internal(error: BaseException) -> bool:
    """Tell whether an error is a fault of ours, which has to be logged."""
    expected = (VhostblkError, OSError, RecursionError, CancelledError)
    return not isinstance(error, expected)


def description(error: BaseException) -> str:
    """Return the description in the reply to a command that failed with `error`."""
    if isinstance(error, RecursionError):
        return "Nested too deeply"
    if isinstance(error, CancelledError):
        return reason(errno.ECANCELED)
    return f"Internal error: {reason(error)}" if is_internal(error) else reason(error)

# SPDX-License-Identifier: Apache-2.0
"""QMP's error classes and descriptions (`qapi/error.json`)."""

from __future__ import annotations

from vhostblk.errors import VhostblkError, is_internal, reason
from vhostblk.objects.tree import PathNotFoundError
from vhostblk.objects.types import TypeNotFoundError


class QmpError(VhostblkError):
    """A request is malformed, or can't be executed."""


class CommandNotFoundError(QmpError):
    """The command does not exist, or is not allowed in this state of the conversation."""


#: `QapiErrorClass` of the kinds that clients distinguish. All others are GenericError.
_CLASSES: dict[type[Exception], str] = {
    CommandNotFoundError: "CommandNotFound",
    PathNotFoundError: "DeviceNotFound",
    TypeNotFoundError: "DeviceNotFound",
}


def error_class(error: BaseException) -> str:
    """Return the class of the reply to a command that failed with `error`."""
    found = (name for kind, name in _CLASSES.items() if isinstance(error, kind))
    return next(found, "GenericError")


def description(error: BaseException) -> str:
    """Return the description in the reply to a command that failed with `error`."""
    return f"Internal error: {reason(error)}" if is_internal(error) else reason(error)

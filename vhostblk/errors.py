# SPDX-License-Identifier: Apache-2.0
"""The root of all errors, and the one place that formats their reasons.

An error has

- a *kind*: its class. Each layer has one family below `VhostblkError`; callers match on the class,
  never on the text.
- a *context*, as far as it is known: `node`, `option`, `file` and `operation`.
- a *cause*: `__cause__`, and `errno` if a system call or a request failed.

`str(error)` is one line, complete in itself: it names the option, the file and the reason, because
the command line, QMP and the logs show nothing else. The words are QEMU's.

I/O fails with `OSError`: its errno is what exports report.
"""

from __future__ import annotations

import errno as codes
import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

_logger = logging.getLogger(__name__)


class VhostblkError(Exception):
    """A request of the user, or of a peer, can't be done.

    An error that was raised from another one also has the context of that one.
    """

    def __init__(self, message: str = "", **context: str) -> None:
        """`context` is some of `node`, `option`, `file` and `operation`."""
        super().__init__(message)
        self._context = context

    @property
    def node(self) -> str | None:
        """The name of the block node."""
        return self._known("node")

    @property
    def option(self) -> str | None:
        """The option, as a path: `file.filename`."""
        return self._known("option")

    @property
    def file(self) -> str | None:
        """The file, device or socket."""
        return self._known("file")

    @property
    def operation(self) -> str | None:
        """The operation that failed, by the name of its QMP command."""
        return self._known("operation")

    @property
    def errno(self) -> int | None:
        """The errno of the system call or request that failed."""
        return next((error.errno for error in self._causes() if isinstance(error, OSError)), None)

    def _known(self, name: str) -> str | None:
        for error in self._causes():
            if isinstance(error, VhostblkError) and name in error._context:
                return error._context[name]
        return None

    def _causes(self) -> list[BaseException]:
        """Return this error and its causes, the last cause last; causes may form a circle."""
        causes: list[BaseException] = [self]
        while (cause := causes[-1].__cause__) is not None and cause not in causes:
            causes.append(cause)
        return causes

    def add_context(self, **context: str) -> None:
        """Add context that the code that raised the error did not know."""
        for name, value in context.items():
            if self._known(name) is None:
                self._context[name] = value


#: The kernel's highest (MAX_ERRNO).
_MAX_ERRNO = 4095


def reason(error: BaseException | int) -> str:
    """Return the reason in an exception or an errno."""
    if isinstance(error, int):
        return os.strerror(error)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def os_error(code: int, text: str = "") -> OSError:
    """Return an OSError for failed I/O; `text` replaces the errno's text."""
    return OSError(code, text or reason(code))


def errno_of(error: BaseException) -> int:
    """Return the errno that an export reports for an error: EIO if no other is known.

    A plug-in may raise an OSError with any number, or with none.
    """
    code = getattr(error, "errno", None)
    return code if isinstance(code, int) and 0 < code <= _MAX_ERRNO else codes.EIO


@contextmanager
def errors_as(
    kind: Callable[..., Exception],
    what: str = "",
    of: type[Exception] | tuple[type[Exception], ...] = OSError,
    **context: str,
) -> Iterator[None]:
    """Convert errors of the `with` block to errors of `kind`, with the text "what: reason".

    Without `what`, the text is only the reason. `of` is the kind, or the kinds, of errors that are
    converted. If `kind` is OSError, the errno is kept.
    """
    try:
        yield
    except of as error:
        text = f"{what}: {reason(error)}" if what else reason(error)
        if kind is OSError:
            raise OSError(errno_of(error), text) from error
        raise kind(text, **context) from error


@contextmanager
def error_context(**context: str) -> Iterator[None]:
    """Add context to any VhostblkError that leaves the `with` block."""
    try:
        yield
    except VhostblkError as error:
        error.add_context(**context)
        raise


def is_internal(error: BaseException) -> bool:
    """Return whether an error is a bug: neither one of our errors nor failed I/O."""
    return not isinstance(error, (VhostblkError, OSError))


def log_error(logger: logging.Logger, what: str, error: BaseException) -> None:
    """Log why `what` failed, with a traceback if it is a bug."""
    traceback = error if is_internal(error) else None
    logger.error("%s: %s", what, reason(error), exc_info=traceback)


def log_failure(task: asyncio.Task[Any]) -> None:
    """Log the failure of a task that is not awaited: a callback for `add_done_callback`."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log_error(_logger, task.get_name(), error)

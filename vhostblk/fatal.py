# SPDX-License-Identifier: Apache-2.0
"""Immediate exit of the process, for drivers with this purpose (`blkverify`).

Nothing is flushed and clients are not notified, so that the images stay as they were at the fault.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

#: Callbacks for files that must be removed nevertheless.
_clean_ups: list[Callable[[], object]] = []


def clean_up_with(callback: Callable[[], object]) -> None:
    """Call `callback()` before the process exits by `end_process`."""
    _clean_ups.append(callback)


def end_process(message: str) -> NoReturn:
    """Print a message and exit with status 1."""
    try:
        print(message, file=sys.stderr, flush=True)
        for callback in _clean_ups:
            callback()
    finally:
        os._exit(1)

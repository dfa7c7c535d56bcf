# SPDX-License-Identifier: Apache-2.0
"""The end of the process on the spot, for drivers whose purpose that is (`blkverify`).

Nothing is flushed, nor are clients told: whoever looks for the fault finds the images as they were.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

#: What is to be removed even then.
_clean_ups: list[Callable[[], object]] = []


def clean_up_with(callback: Callable[[], object]) -> None:
    """Have `callback()` called before the process ends here."""
    _clean_ups.append(callback)


def end_process(message: str) -> NoReturn:
    """Print a message and end the process with status 1."""
    try:
        print(message, file=sys.stderr, flush=True)
        for callback in _clean_ups:
            callback()
    finally:
        os._exit(1)

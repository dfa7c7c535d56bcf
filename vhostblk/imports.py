# SPDX-License-Identifier: Apache-2.0
"""Late imports: parts that tables name, and heavy modules while the event loop runs.

Importing numpy and the modules that need it takes a tenth of a second, or more on a busy machine.
On the event loop it would delay QMP clients, and guests on the Python lane. A thread that imports
releases the interpreter every few milliseconds.
"""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

_imported: set[str] = set()


async def import_modules(*names: str) -> None:
    """Import modules in a thread; once this returns, importing them costs nothing.

    Meanwhile, do not import them on the event loop: it would wait for the thread.
    """
    missing = [name for name in names if name not in _imported]
    if missing:
        await asyncio.to_thread(_import, missing)
        _imported.update(missing)


def _import(names: list[str]) -> None:
    for name in names:
        importlib.import_module(name)


def load(part: str) -> Any:
    """Import and return the object that `module:name` names, as in an entry point."""
    module, _, name = part.partition(":")
    return getattr(importlib.import_module(module), name)

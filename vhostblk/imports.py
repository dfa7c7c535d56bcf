# SPDX-License-Identifier: Apache-2.0
"""Importing late: what tables name, and heavy modules while the event loop goes on.

numpy and what needs it take a tenth of a second, more where processors are short. Meanwhile QMP
clients wait, and the guests on the Python lane. A thread that imports gives the interpreter up
every few milliseconds.
"""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

_imported: set[str] = set()


async def import_modules(*names: str) -> None:
    """Import modules in a thread; once this returns, importing them costs nothing.

    Nothing imports them on the event loop meanwhile: it would wait for the thread.
    """
    missing = [name for name in names if name not in _imported]
    if missing:
        await asyncio.to_thread(_import, missing)
        _imported.update(missing)


def _import(names: list[str]) -> None:
    for name in names:
        importlib.import_module(name)


def load(part: str) -> Any:
    """Import and return what an entry of a table names: `module:name`, as in an entry point."""
    module, _, name = part.partition(":")
    return getattr(importlib.import_module(module), name)

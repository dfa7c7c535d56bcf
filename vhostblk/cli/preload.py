# SPDX-License-Identifier: Apache-2.0
"""Imports everything that the daemon may need later.

Modules are imported when they are first used, so that start-up is short. An upgrade replaces the
package's files under a running daemon, and `--run-as` may leave it without the right to read
them. So all modules are imported in a thread: after start-up, or before the change of user.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import pkgutil
import threading
from typing import TYPE_CHECKING

import vhostblk
from vhostblk.trace import points as trace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

logger = logging.getLogger(__name__)

#: What a daemon never needs: programs of their own, and what builds or tests.
_OTHERS = ("__main__", "engine.build", "plugin.testing", "pr")

#: Modules of others that functions import, or that the standard library imports late.
_FOREIGN = (
    "cffi.cparser",
    "concurrent.futures.thread",
    "encodings.idna",
    "encodings.unicode_escape",
    "importlib.metadata",
    "linecache",
    "numpy",
    "stringprep",
    "traceback",
)


#: Seconds after start-up: the first guest goes before, and daemons that live shortly are spared.
_DELAY = 3


class Preloader:
    """The thread that imports."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run_later, name="preload", daemon=True)

    async def run(self) -> None:
        """Import everything now."""
        await asyncio.to_thread(self._run)

    def start(self) -> None:
        """Import everything in the background."""
        self._thread.start()

    async def stop(self) -> None:
        """Import nothing more: the interpreter must not end while a module is imported."""
        self._stopping.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _run_later(self) -> None:
        self._stopping.wait(_DELAY)
        self._run()

    def _run(self) -> None:
        count = 0
        for name in (*_FOREIGN, *_modules(vhostblk)):
            if self._stopping.is_set():
                return
            try:
                importlib.import_module(name)
            except ImportError as error:  # the engine was not built, or an extra is missing
                logger.debug("%s can't be imported: %s", name, error)
            count += 1
        if trace.modules_loaded.enabled:
            trace.modules_loaded(count)


def _modules(package: ModuleType) -> Iterator[str]:
    """List the names of all modules below a package, without those that no daemon needs."""
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if module.name.partition(".")[2] in _OTHERS:
            continue
        yield module.name
        if module.ispkg:
            yield from _modules(importlib.import_module(module.name))

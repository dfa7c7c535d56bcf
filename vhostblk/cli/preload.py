# SPDX-License-Identifier: Apache-2.0
"""Import of all modules that the daemon may need later.

Modules are imported when they are first used, so that start-up is short. But an upgrade replaces
the package's files while the daemon runs, and after `--run-as` the daemon may not be allowed to
read them. So a thread imports all modules: after start-up, or before the change of user.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import pkgutil
import sys
import threading
from itertools import chain
from typing import TYPE_CHECKING

import vhostblk
from vhostblk.trace import points as trace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

logger = logging.getLogger(__name__)

#: Modules that no daemon needs: other programs, building and testing.
_OTHERS = ("__main__", "engine.build", "plugin.testing", "pr")

#: Modules of other packages that are imported inside functions.
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


#: Seconds after start-up, so that the first guest and short-lived daemons are not delayed.
_DELAY = 3


class Preloader:
    """The thread that imports the modules."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run_later, name="preload", daemon=True)

    async def run(self) -> None:
        """Import everything now; `start` does nothing more then."""
        await asyncio.to_thread(self._run)
        self._stopping.set()

    def start(self) -> None:
        """Import everything in the background."""
        if not self._stopping.is_set():
            self._thread.start()

    async def stop(self) -> None:
        """Stop importing: the interpreter must not exit while a module is imported."""
        self._stopping.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _run_later(self) -> None:
        self._stopping.wait(_DELAY)
        self._run()

    def _run(self) -> None:
        count = 0
        for name in chain(_FOREIGN, _modules(vhostblk)):
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
    """Return the names of all modules below a package that a daemon may need."""
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if module.name.partition(".")[2] in _OTHERS:
            continue
        yield module.name
        # The caller has imported it, or tried to.
        if module.ispkg and module.name in sys.modules:
            yield from _modules(sys.modules[module.name])

# SPDX-License-Identifier: Apache-2.0
"""The Python face of the compiled core.

`load()` gives the cffi pair (ffi, lib), or None where the extension was not built or is switched
off with `VHOSTBLK_ENGINE=off`. Everything that uses it has a way to do without.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)


class Engine(NamedTuple):
    """The compiled extension as cffi presents it."""

    ffi: Any
    lib: Any


@functools.cache
def load() -> Engine | None:
    """Import the extension once; say once when it is missing."""
    if os.environ.get("VHOSTBLK_ENGINE") == "off":
        return None
    try:
        extension = importlib.import_module("vhostblk.engine._engine")
    except ImportError as error:
        logger.warning("compiled engine not available (%s): serving in Python only", error)
        return None
    return Engine(extension.ffi, extension.lib)

# SPDX-License-Identifier: Apache-2.0
"""QMP commands, a module for each area; importing a module registers its commands."""

from __future__ import annotations

import importlib
import pkgutil


def load_all() -> None:
    """Register the commands of all modules here."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)

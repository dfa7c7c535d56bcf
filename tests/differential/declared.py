# SPDX-License-Identifier: Apache-2.0
"""Differences by their names: those that scripts refer to."""

from __future__ import annotations

from tests.differential.differences import Difference
from tests.differential.script import ScriptError
from tests.qmp_exports import differences


def find(name: str) -> Difference:
    """Return a difference; raises ScriptError where there is none of that name."""
    found = globals().get(name, getattr(differences, name, None))
    if not isinstance(found, Difference):
        raise ScriptError(f"no difference is called {name}")
    return found

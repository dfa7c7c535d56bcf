# SPDX-License-Identifier: Apache-2.0
"""Names that users give to objects, nodes and exports (`util/id.c`)."""

from __future__ import annotations

import re

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")


def is_identifier(name: str) -> bool:
    """Return whether a name is a letter followed by letters, digits, '-', '.' and '_'."""
    return _IDENTIFIER.fullmatch(name) is not None

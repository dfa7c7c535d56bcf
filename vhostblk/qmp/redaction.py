# SPDX-License-Identifier: Apache-2.0
"""Requests as trace points may show them: without secrets."""

from __future__ import annotations

from vhostblk.schema.object import SHOWN_MEMBERS

_HIDDEN = "..."


def without_secrets(value: object) -> object:
    """Return a request with everything hidden that is, or might be meant as, a secret.

    This sees requests before they are checked: whatever can't be sent twice must not be shown.
    """
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("qom-type")
    if isinstance(kind, str) and "secret" in kind:
        return {
            name: member if name in SHOWN_MEMBERS else _HIDDEN for name, member in value.items()
        }
    if value.get("property") == "data":  # of `qom-set`
        return {name: _HIDDEN if name == "value" else member for name, member in value.items()}
    return {name: without_secrets(member) for name, member in value.items()}

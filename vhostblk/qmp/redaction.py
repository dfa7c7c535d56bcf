# SPDX-License-Identifier: Apache-2.0
"""Removal of secrets from requests, for trace points."""

from __future__ import annotations

from vhostblk.schema.object import SHOWN_MEMBERS

_HIDDEN = "..."


def without_secrets(value: object) -> object:
    """Return a request without anything that is a secret, or may be meant as one.

    The requests are not checked yet: a misspelled member can contain a secret.
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

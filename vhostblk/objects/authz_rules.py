# SPDX-License-Identifier: Apache-2.0
"""Rules of authorization lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.schema.objects.authz import QAuthZListFormat, QAuthZListPolicy

if TYPE_CHECKING:
    from vhostblk.schema.objects.authz import AuthZList, AuthZListProperties


def allows(rules: AuthZList | AuthZListProperties, identity: str) -> bool:
    """Return what the first rule that fits says, else the policy."""
    for rule in rules.rules:
        if rule.format is QAuthZListFormat.GLOB:
            fits = glob_matches(rule.match, identity)
        else:
            fits = rule.match == identity
        if fits:
            return rule.policy is QAuthZListPolicy.ALLOW
    return rules.policy is QAuthZListPolicy.ALLOW


def glob_matches(pattern: str, text: str) -> bool:
    """Compare with a pattern of GLib's: `*` is any text, `?` one character, and nothing else.

    Takes at most the product of the lengths: only the last `*` is ever tried again.
    """
    at = place = 0
    star = retry = -1
    while place < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, retry = at, place
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", text[place]):
            at += 1
            place += 1
        elif star >= 0:
            retry += 1
            at, place = star + 1, retry
        else:
            return False
    return all(character == "*" for character in pattern[at:])

# SPDX-License-Identifier: Apache-2.0
"""Change of the process's user."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass

from vhostblk.errors import errors_as
from vhostblk.sandbox.errors import SandboxError


@dataclass(frozen=True, slots=True)
class Identity:
    """A user and its groups."""

    user: int
    group: int
    #: Supplementary groups.
    groups: tuple[int, ...]


def find(text: str) -> Identity:
    """Look up `USER[:GROUP]`, by name or number; raises SandboxError.

    Without a group, the groups are the user's primary one and those the user is a member of.
    """
    user_text, colon, group_text = text.partition(":")
    entry = _user(user_text)
    if colon:
        group = _group(group_text)
        return Identity(_uid(user_text, entry), group, (group,))
    if entry is None:
        raise SandboxError(f"user {user_text} has no entry that names a group; use USER:GROUP")
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return Identity(entry.pw_uid, entry.pw_gid, tuple(groups))


def _user(text: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
    except (KeyError, OverflowError):
        if text.isdecimal():
            return None
        raise SandboxError(f"user '{text}' doesn't exist") from None


def _uid(text: str, entry: pwd.struct_passwd | None) -> int:
    return _number("user", text) if entry is None else entry.pw_uid


def _group(text: str) -> int:
    if text.isdecimal():
        return _number("group", text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise SandboxError(f"group '{text}' doesn't exist") from None


def _number(what: str, text: str) -> int:
    number = int(text)
    if number >= (1 << 32) - 1:  # all ones means "unchanged"
        raise SandboxError(f"{what} {text} is out of range")
    return number


def become(identity: Identity) -> None:
    """Change user and groups of all threads for ever; raises SandboxError."""
    with errors_as(SandboxError, "can't change user"):
        os.setgroups(identity.groups)
        os.setresgid(identity.group, identity.group, identity.group)
        os.setresuid(identity.user, identity.user, identity.user)

# SPDX-License-Identifier: Apache-2.0
"""Options of authorization objects, which check authenticated names (`qapi/authz.json`)."""

from __future__ import annotations

from enum import Enum

from msgspec import field

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.object import ObjectOptions


class QAuthZListPolicy(Enum):
    """Whether a name is denied or allowed."""

    DENY = "deny"
    ALLOW = "allow"


class QAuthZListFormat(Enum):
    """The matching of a rule: exact, or with the wildcards `*` and `?`."""

    EXACT = "exact"
    GLOB = "glob"


class QAuthZListRule(QapiStruct, kw_only=True, frozen=True):
    """A rule; the first one that matches counts."""

    match: str
    policy: QAuthZListPolicy
    format: QAuthZListFormat | UnsetType = UNSET


class AuthZListProperties(ObjectOptions, tag="authz-list", kw_only=True, frozen=True):
    """A list of rules; `policy` is for names that no rule matches."""

    policy: QAuthZListPolicy = QAuthZListPolicy.DENY
    rules: list[QAuthZListRule] = field(default_factory=list)


class AuthZList(QapiStruct, kw_only=True, frozen=True):
    """The content of a file of rules."""

    policy: QAuthZListPolicy = QAuthZListPolicy.DENY
    rules: list[QAuthZListRule] = field(default_factory=list)


class AuthZListFileProperties(ObjectOptions, tag="authz-list-file", kw_only=True, frozen=True):
    """Rules in a file; `refresh`: read the file again when it has changed."""

    filename: str
    refresh: bool = True


class AuthZListfileProperties(AuthZListFileProperties, tag="authz-listfile", frozen=True):
    """The name of `authz-list-file` in QEMU's schema."""


class AuthZPAMProperties(ObjectOptions, tag="authz-pam", kw_only=True, frozen=True):
    """The account rules of a PAM service."""

    service: str


class AuthZSimpleProperties(ObjectOptions, tag="authz-simple", kw_only=True, frozen=True):
    """Authorization of a single name."""

    identity: str

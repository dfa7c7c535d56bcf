# SPDX-License-Identifier: Apache-2.0
"""Options of authorization: who may, by the name that the peer has proved (`qapi/authz.json`)."""

from __future__ import annotations

from enum import Enum

from msgspec import field

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.object import ObjectOptions


class QAuthZListPolicy(Enum):
    """What becomes of a name."""

    DENY = "deny"
    ALLOW = "allow"


class QAuthZListFormat(Enum):
    """How a rule is compared: as it is, or with `*` and `?` as wildcards."""

    EXACT = "exact"
    GLOB = "glob"


class QAuthZListRule(QapiStruct, kw_only=True, frozen=True):
    """A rule; the first one that fits counts."""

    match: str
    policy: QAuthZListPolicy
    format: QAuthZListFormat | UnsetType = UNSET


class AuthZListProperties(ObjectOptions, tag="authz-list", kw_only=True, frozen=True):
    """Rules; `policy` is for names that none of them fits."""

    policy: QAuthZListPolicy = QAuthZListPolicy.DENY
    rules: list[QAuthZListRule] = field(default_factory=list)


class AuthZList(QapiStruct, kw_only=True, frozen=True):
    """The content of a file of rules."""

    policy: QAuthZListPolicy = QAuthZListPolicy.DENY
    rules: list[QAuthZListRule] = field(default_factory=list)


class AuthZListFileProperties(ObjectOptions, tag="authz-list-file", kw_only=True, frozen=True):
    """Rules in a file; `refresh`: they are read again when the file has changed."""

    filename: str
    refresh: bool = True


class AuthZListfileProperties(AuthZListFileProperties, tag="authz-listfile", frozen=True):
    """The name that QEMU's schema has for `authz-list-file`."""


class AuthZPAMProperties(ObjectOptions, tag="authz-pam", kw_only=True, frozen=True):
    """The account rules of a PAM service."""

    service: str


class AuthZSimpleProperties(ObjectOptions, tag="authz-simple", kw_only=True, frozen=True):
    """One name is allowed."""

    identity: str

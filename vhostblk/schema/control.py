# SPDX-License-Identifier: Apache-2.0
"""Monitors and their basic commands (`qapi/control.json`, `qapi/misc.json`)."""

from __future__ import annotations

from enum import Enum

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType


class MonitorMode(Enum):
    """The protocol of a monitor."""

    READLINE = "readline"
    CONTROL = "control"


class MonitorOptions(QapiStruct, kw_only=True, frozen=True):
    """A monitor on a character device."""

    id: str | UnsetType = UNSET
    mode: MonitorMode | UnsetType = UNSET
    pretty: bool | UnsetType = UNSET
    chardev: str


class QMPCapability(Enum):
    """A capability that a client may enable."""

    OOB = "oob"


class QmpCapabilities(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `qmp_capabilities`."""

    enable: list[QMPCapability] | UnsetType = UNSET


class VersionTriple(QapiStruct, kw_only=True, frozen=True):
    """A version number."""

    major: int
    minor: int
    micro: int


class VersionInfo(QapiStruct, kw_only=True, frozen=True):
    """Result of `query-version`: the version of the compatible QEMU, and of this package."""

    qemu: VersionTriple
    package: str


class CommandInfo(QapiStruct, kw_only=True, frozen=True):
    """One command in the answer of `query-commands`."""

    name: str

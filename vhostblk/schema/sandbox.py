# SPDX-License-Identifier: Apache-2.0
"""Options of the sandbox (`--sandbox`, named after the option of QEMU's emulator)."""

from __future__ import annotations

from enum import Enum

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType


class SandboxAction(Enum):
    """Whether an action is allowed."""

    ALLOW = "allow"
    DENY = "deny"


class SandboxFiles(Enum):
    """Whether files that no option has named may be opened."""

    #: Denied if directories are named, or if there is no monitor.
    AUTO = "auto"
    ALLOW = "allow"
    DENY = "deny"


class SandboxOptions(QapiStruct, kw_only=True, frozen=True):
    """The sandbox."""

    enable: bool = True
    #: Start programs.
    spawn: SandboxAction = SandboxAction.DENY
    files: SandboxFiles = SandboxFiles.AUTO
    #: Directories in which files may be opened, created and removed at run time.
    directory: list[str] | UnsetType = UNSET

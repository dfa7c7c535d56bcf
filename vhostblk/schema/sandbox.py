# SPDX-License-Identifier: Apache-2.0
"""What the process gives up (`--sandbox`, after the option of the same name of QEMU's emulator)."""

from __future__ import annotations

from enum import Enum

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType


class SandboxAction(Enum):
    """Whether something may still be done."""

    ALLOW = "allow"
    DENY = "deny"


class SandboxFiles(Enum):
    """Whether files may be opened that nothing has named at the start."""

    #: Denied where directories are named, or where no monitor could ask for files.
    AUTO = "auto"
    ALLOW = "allow"
    DENY = "deny"


class SandboxOptions(QapiStruct, kw_only=True, frozen=True):
    """The sandbox."""

    enable: bool = True
    #: Start programs.
    spawn: SandboxAction = SandboxAction.DENY
    files: SandboxFiles = SandboxFiles.AUTO
    #: Directories in which files may be opened, made and removed at run time.
    directory: list[str] | UnsetType = UNSET

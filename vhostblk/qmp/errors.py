# SPDX-License-Identifier: Apache-2.0
"""Errors as QMP tells them: a class and a description (`qapi/error.json`, QapiErrorClass)."""

from __future__ import annotations

from vhostblk.errors import VhostblkError

GENERIC_ERROR = "GenericError"
COMMAND_NOT_FOUND = "CommandNotFound"
DEVICE_NOT_ACTIVE = "DeviceNotActive"
DEVICE_NOT_FOUND = "DeviceNotFound"
KVM_MISSING_CAP = "KVMMissingCap"


class QmpError(VhostblkError):
    """A command failed; any other VhostblkError is told as a GenericError."""

    def __init__(self, description: str, error_class: str = GENERIC_ERROR) -> None:
        super().__init__(description)
        self.error_class = error_class

# SPDX-License-Identifier: Apache-2.0
"""Character device with nobody at the other end: takes everything, says nothing."""

from __future__ import annotations

from vhostblk.chardev.base import Chardev


class NullChardev(Chardev):
    """`null`."""

    def __init__(self, label: str) -> None:
        super().__init__(label)
        self._open = True

    @property
    def filename(self) -> str:
        """How `query-chardev` describes the device."""
        return "null"

    def _write(self, data: bytes) -> bool:
        return True

# SPDX-License-Identifier: Apache-2.0
"""Character device without a peer: it discards output and has no input."""

from __future__ import annotations

from vhostblk.chardev.base import Chardev


class NullChardev(Chardev):
    """The backend `null`."""

    def __init__(self, label: str) -> None:
        super().__init__(label)
        self._open = True

    @property
    def filename(self) -> str:
        """The description of the device in `query-chardev`."""
        return "null"

    def _write(self, data: bytes) -> bool:
        return True

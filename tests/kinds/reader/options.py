# SPDX-License-Identifier: Apache-2.0
"""Options of `test-reader`."""

from __future__ import annotations

from vhostblk.schema.errors import OptionError
from vhostblk.schema.export import BlockExportOptions


class ReaderOptions(BlockExportOptions, tag="test-reader", kw_only=True, frozen=True):
    """Where it listens."""

    #: The path of a UNIX socket.
    path: str

    def check(self) -> None:
        """Refuse what can't be read from."""
        if self.writable:
            raise OptionError("An export of type 'test-reader' can't be writable")

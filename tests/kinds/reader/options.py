# SPDX-License-Identifier: Apache-2.0
"""Options of `test-reader`."""

from __future__ import annotations

from vhostblk.schema.errors import OptionError
from vhostblk.schema.export import BlockExportOptions


class ReaderOptions(BlockExportOptions, tag="test-reader", kw_only=True, frozen=True):
    """The address of the export."""

    #: The path of a UNIX socket.
    path: str

    def check(self) -> None:
        """Refuse a writable export; raises OptionError."""
        if self.writable:
            raise OptionError("An export of type 'test-reader' can't be writable")

# SPDX-License-Identifier: Apache-2.0
"""The error family of exports."""

from __future__ import annotations

from vhostblk.block.errors import BlockError


class ExportNotFoundError(BlockError):
    """No export has that id."""

    def __init__(self, export_id: str) -> None:
        super().__init__(f"Export '{export_id}' is not found")

# SPDX-License-Identifier: Apache-2.0
"""An export type as in another package: it copies the disk to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from vhostblk.block.io.iovec import IoVec
from vhostblk.exports.base import Export
from vhostblk.schema.errors import OptionError
from vhostblk.schema.export import BlockExportOptions


class CopyingOptions(BlockExportOptions, tag="test-copy", kw_only=True, frozen=True):
    """The path of the copy."""

    target: str

    def check(self) -> None:
        """Refuse a relative path."""
        if not self.target.startswith("/"):
            raise OptionError("target must be an absolute path")


class CopyingExport(Export):
    """A copy of the disk, which exists while the export runs."""

    options_type: ClassVar[type[BlockExportOptions]] = CopyingOptions

    def __init__(self, options: CopyingOptions, backend: Any, iothreads: Any) -> None:
        super().__init__(options, backend, iothreads)
        self._target = Path(options.target)

    @classmethod
    def connect_hint(cls, options: CopyingOptions) -> list[str] | None:
        """Return the QEMU arguments that use the copy."""
        return ["-drive", f"file={options.target},format=raw"]

    async def start(self, carried: Any = None, *, movable: bool = False) -> None:
        """Copy the disk."""
        data = bytearray(self.backend.size)
        async with self.backend.request():
            await self.backend.preadv(0, IoVec.from_buffers([data]))
        self._target.write_bytes(data)

    async def stop(self) -> None:
        """Remove the copy."""
        self._target.unlink()

    @property
    def made_files(self) -> list[str]:
        """The path of the copy."""
        return [str(self._target)]

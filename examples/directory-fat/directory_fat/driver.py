# SPDX-License-Identifier: Apache-2.0
"""`directory-fat`: options, and the driver."""

from __future__ import annotations

from enum import Enum

from directory_fat.tree import Tree
from directory_fat.volume import Volume
from vhostblk import plugin


class FatType(Enum):
    """Which file system; `auto` is FAT16 if the directory fits."""

    AUTO = "auto"
    FAT16 = "fat16"
    FAT32 = "fat32"


class DirectoryFatOptions(plugin.Options, tag="directory-fat", frozen=True):
    """`--blockdev directory-fat,node-name=…,directory=…`."""

    directory: str
    label: str = "VHOSTBLK"
    fat_type: FatType = FatType.AUTO


class DirectoryFatDriver(plugin.SyncDriver[DirectoryFatOptions]):
    """Files are read in the thread: a slow one delays the others, but not the daemon."""

    options_type = DirectoryFatOptions
    optimal_transfer = 32768

    def open(self) -> None:
        kind = self.options.fat_type
        is_32 = None if kind is FatType.AUTO else kind is FatType.FAT32
        self._tree = Tree(self.options.directory)
        try:
            self._volume = Volume(
                self._tree, self._tree.scan(), is_32=is_32, label=self.options.label
            )
        except BaseException:
            self._tree.close()
            raise

    def close(self) -> None:
        self._tree.close()

    def size(self) -> int:
        return self._volume.geometry.size

    def read(self, offset: int, length: int) -> bytes:
        return self._volume.read(offset, length)

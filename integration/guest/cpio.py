# SPDX-License-Identifier: Apache-2.0
"""Writes `newc` archives, the format that Linux unpacks as an initramfs.

Written directly, because device nodes and root ownership then need no privileges.
"""

from __future__ import annotations

import stat
from typing import BinaryIO

_TRAILER = "TRAILER!!!"


class CpioWriter:
    """Appends members to `stream`; parents of a member are made on the way."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._inode = 0
        self._names: set[str] = set()

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._parents(name)
        self._member(name, stat.S_IFREG | mode, content)

    def directory(self, name: str) -> None:
        """Add a directory."""
        self._parents(name)
        self._member(name, stat.S_IFDIR | 0o755)

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._parents(name)
        self._member(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int) -> None:
        """Add a character device node."""
        self._parents(name)
        self._member(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def close(self) -> None:
        """Write the trailer; the stream stays open."""
        self._member(_TRAILER, 0)

    def _parents(self, name: str) -> None:
        parts = name.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            self._member("/".join(parts[:depth]), stat.S_IFDIR | 0o755)

    def _member(
        self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        if name in self._names:
            return
        self._names.add(name)
        self._inode += 1
        encoded = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device, device node, name length, checksum.
        fields = (
            *(self._inode, mode, 0, 0, 1, 0, len(content)),
            *(0, 0, *device, len(encoded), 0),
        )
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._write_padded(header + encoded)
        self._write_padded(content)

    def _write_padded(self, data: bytes) -> None:
        self._stream.write(data)
        self._stream.write(bytes(-len(data) % 4))

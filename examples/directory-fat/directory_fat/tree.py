# SPDX-License-Identifier: Apache-2.0
"""The directory: looked through when the disk is opened, its files read when they are asked for.

Nothing outside the directory is ever opened, whatever is renamed or linked meanwhile: each part of
a path is opened from the descriptor of the one before, and never through a symbolic link. What is
neither a file nor a directory, symbolic links among it, is left out.

What the disk says of a file (its size, above all) is what was true at the beginning. A file that
has been replaced or has become shorter since can't be read; one that grew shows its beginning.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from dataclasses import dataclass, field

from vhostblk.plugin import DriverError

#: What a file's size has room for.
MAX_FILE = (1 << 32) - 1
#: What is looked at before giving up.
MAX_ENTRIES = 1 << 20
#: Files that are kept open.
MAX_OPEN = 64

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

Path = tuple[str, ...]


@dataclass
class File:
    """A file as it was found."""

    path: Path
    size: int
    mtime: float
    identity: tuple[int, int]


@dataclass
class Directory:
    """A directory as it was found; members in the order of their names."""

    path: Path
    mtime: float
    members: list[File | Directory] = field(default_factory=list)


def shown(path: Path) -> str:
    """Return a path for messages."""
    return "/".join(path).encode(errors="replace").decode()


class Tree:
    """A directory, open. Used by one thread."""

    def __init__(self, path: str) -> None:
        """Raise OSError where there is no such directory."""
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open_files: OrderedDict[Path, int] = OrderedDict()

    def close(self) -> None:
        """Close all files."""
        for fd in (*self._open_files.values(), self._root):
            os.close(fd)

    # Looking through.

    def scan(self) -> Directory:
        """Return the root with everything in it; raises DriverError."""
        root = Directory((), os.fstat(self._root).st_mtime)
        pending, seen = [root], 0
        while pending:
            directory = pending.pop()
            directory.members = self._members(directory.path)
            pending += [member for member in directory.members if isinstance(member, Directory)]
            seen += len(directory.members)
            if seen > MAX_ENTRIES:
                raise DriverError(f"The directory has more than {MAX_ENTRIES} files")
        return root

    def _members(self, path: Path) -> list[File | Directory]:
        fd = self._open(path, _DIRECTORY)
        try:
            found = [self._member((*path, name), fd) for name in sorted(os.listdir(fd))]  # noqa: PTH208
        finally:
            os.close(fd)
        return [member for member in found if member is not None]

    def _member(self, path: Path, directory_fd: int) -> File | Directory | None:
        try:
            status = os.stat(path[-1], dir_fd=directory_fd, follow_symlinks=False)
        except FileNotFoundError:  # gone since it was listed
            return None
        if stat.S_ISDIR(status.st_mode):
            return Directory(path, status.st_mtime)
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size > MAX_FILE:
            raise DriverError(
                f"'{shown(path)}' has {status.st_size} bytes; a file on FAT has less than 4 GiB"
            )
        return File(path, status.st_size, status.st_mtime, (status.st_dev, status.st_ino))

    # Reading.

    def read(self, file: File, offset: int, length: int) -> bytes:
        """Return bytes of a file, inside its size; raises OSError where it is not what it was."""
        fd = self._open_files.get(file.path)
        if fd is None:
            fd = self._open_checked(file)
        else:
            self._open_files.move_to_end(file.path)
        data = os.pread(fd, length, offset)
        if len(data) < length:
            raise OSError(errno.EIO, f"'{shown(file.path)}' has become shorter")
        return data

    def _open_checked(self, file: File) -> int:
        fd = self._open(file.path, _FILE)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != file.identity:
            os.close(fd)
            raise OSError(errno.ESTALE, f"'{shown(file.path)}' has been replaced")
        self._open_files[file.path] = fd
        if len(self._open_files) > MAX_OPEN:
            os.close(self._open_files.popitem(last=False)[1])
        return fd

    def _open(self, path: Path, flags: int) -> int:
        """Open what is below the root, without following any link."""
        fd = os.dup(self._root)
        for depth, name in enumerate(path, start=1):
            above = fd
            try:
                fd = os.open(name, flags if depth == len(path) else _DIRECTORY, dir_fd=above)
            finally:
                os.close(above)
        return fd

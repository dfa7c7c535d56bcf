# SPDX-License-Identifier: Apache-2.0
"""Landlock: restricts which files may be opened.

Open files stay usable. The rules apply when a file is opened, by system calls and by io_uring.
Rights that the running kernel does not know are omitted, so an older kernel restricts less
(`landlock(7)`, "Good practices").

Rules apply to the thread that sets them and to those that it starts later.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import TYPE_CHECKING, NamedTuple

from vhostblk.sandbox.layout import (
    FS_IOCTL_DEV,
    FS_OF_FILES,
    FS_READ_DIR,
    FS_READ_FILE,
    FS_REFER,
    FS_REMOVE_FILE,
    FS_TRUNCATE,
    FS_VERSION_1,
    FS_WRITE_FILE,
    LANDLOCK_CREATE_RULESET_VERSION,
    LANDLOCK_RULE_PATH_BENEATH,
    SCOPE_SIGNAL,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhostblk.sandbox.kernel import Kernel

READ = FS_READ_FILE | FS_READ_DIR
WRITE = READ | FS_WRITE_FILE | FS_TRUNCATE | FS_IOCTL_DEV
#: All rights except execution: files are created and removed.
MANAGE = (FS_VERSION_1 | FS_TRUNCATE | FS_IOCTL_DEV | FS_REFER) & ~1
REMOVE = FS_REMOVE_FILE

_RULE = struct.Struct("=Qi")  # struct landlock_path_beneath_attr, packed


class Rule(NamedTuple):
    """Rights on a file, or on all files below a directory."""

    path: str
    rights: int


def version(kernel: Kernel) -> int:
    """Return the version of the interface; raises OSError if there is none."""
    return kernel.call("landlock_create_ruleset", 0, 0, LANDLOCK_CREATE_RULESET_VERSION)


def ruleset(version: int) -> tuple[bytes, int]:
    """Return `struct landlock_ruleset_attr` for a kernel of this version, and the rights.

    These rights on files are denied unless a rule grants them.
    """
    rights = FS_VERSION_1
    for since, right in ((2, FS_REFER), (3, FS_TRUNCATE), (5, FS_IOCTL_DEV)):
        if version >= since:
            rights |= right
    words = [rights]  # handled_access_fs, handled_access_net, scoped
    if version >= 4:
        words.append(0)
    if version >= 6:
        words.append(SCOPE_SIGNAL)
    return struct.pack(f"={len(words)}Q", *words), rights


def restrict(kernel: Kernel, rules: Iterable[Rule]) -> int:
    """Deny all rights that no rule grants; return the version of the interface used.

    Rules of paths that don't exist are ignored. Raises OSError.
    """
    found = version(kernel)
    described, rights = ruleset(found)
    fd = kernel.call("landlock_create_ruleset", described, len(described), 0)
    try:
        for rule in rules:
            _add(kernel, fd, rule, rights)
        kernel.call("landlock_restrict_self", fd, 0)
    finally:
        os.close(fd)
    return found


def _add(kernel: Kernel, ruleset_fd: int, rule: Rule, rights: int) -> None:
    try:
        fd = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        given = rule.rights & rights
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            given &= FS_OF_FILES
        if given:
            described = _RULE.pack(given, fd)
            kernel.call("landlock_add_rule", ruleset_fd, LANDLOCK_RULE_PATH_BENEATH, described, 0)
    finally:
        os.close(fd)

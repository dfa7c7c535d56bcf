# SPDX-License-Identifier: Apache-2.0
"""Block permissions, as in QEMU (`include/block/block-common.h`, BLK_PERM_*).

Every parent of a node takes some permissions and shares some with the node's other parents. The
values are also the offsets of the image-locking bytes, see `vhostblk.block.graph.locking`.
"""

from __future__ import annotations

from enum import IntFlag


class Perm(IntFlag):
    """What a parent does with a node, or lets others do."""

    NONE = 0
    CONSISTENT_READ = 0x01
    WRITE = 0x02
    WRITE_UNCHANGED = 0x04
    RESIZE = 0x08
    ALL = 0x0F


#: The names in QEMU's messages.
PERM_NAMES = {
    Perm.CONSISTENT_READ: "consistent read",
    Perm.WRITE: "write",
    Perm.WRITE_UNCHANGED: "write unchanged",
    Perm.RESIZE: "resize",
}


def names_of(perm: Perm) -> str:
    """List permissions for a message: 'write, resize'."""
    return ", ".join(name for flag, name in PERM_NAMES.items() if flag in perm)

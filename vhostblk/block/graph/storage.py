# SPDX-License-Identifier: Apache-2.0
"""Host files that hold the data of this process's nodes.

A file is identified by device and inode, whatever its name (links, prefixes). Image locks exclude
other processes, and other nodes of this process. But a node without users holds no locks, and with
the option `locking=off` no node does. Therefore code that truncates or formats a file, or makes one
image the backing image of another, checks here.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import weakref
from abc import abstractmethod
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from vhostblk.block.errors import BlockError
from vhostblk.block.graph.drain import with_descendants
from vhostblk.block.graph.inherit import BACKING
from vhostblk.block.graph.node import BlockNode

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The ioctl(2) number, and the members of `struct loop_info64` that identify the file behind a loop
#: device; from <linux/loop.h>.
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO_BYTES = 232
_LOOP_FILE = struct.Struct("=QQ")
_LOOP_MAJOR = 7


class StorageId(NamedTuple):
    """The identity of a file or block device of the host."""

    is_device: bool
    #: The device that contains the file; for a block device, its own number.
    device: int
    inode: int


class StorageNode(BlockNode):
    """A node with its own storage."""

    @property
    @abstractmethod
    def storage(self) -> frozenset[StorageId]:
        """The host files that the node itself accesses."""


#: All open nodes.
_nodes: weakref.WeakSet[StorageNode] = weakref.WeakSet()


def identify(fd: int) -> frozenset[StorageId]:
    """Return the identity of an open file; for a loop device, also that of the file behind it."""
    info = os.fstat(fd)
    if not stat.S_ISBLK(info.st_mode):
        return frozenset({StorageId(False, info.st_dev, info.st_ino)})
    found = {StorageId(True, info.st_rdev, 0)}
    if os.major(info.st_rdev) == _LOOP_MAJOR:
        try:
            shown = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO_BYTES))
        except OSError:  # no file behind it
            return frozenset(found)
        device, inode = _LOOP_FILE.unpack_from(shown)
        found.add(StorageId(False, _device_number(device), inode))
    return frozenset(found)


def _device_number(encoded: int) -> int:
    """Convert a device number from the kernel's old format to that of stat(2)."""
    return os.makedev((encoded >> 8) & 0xFFF, (encoded & 0xFF) | (encoded >> 12) & 0xFFF00)


def note_open(node: StorageNode) -> None:
    """Register a node, until `note_closed`."""
    _nodes.add(node)


def note_closed(node: StorageNode) -> None:
    """Undo `note_open`."""
    _nodes.discard(node)


def user_of(found: frozenset[StorageId], but: Iterable[BlockNode] = ()) -> BlockNode | None:
    """Return an open node, not in `but`, that uses one of these files; None: there is none."""
    left_out = set(but)
    return next(
        (node for node in _nodes if node not in left_out and node.storage & found),
        None,
    )


def check_unused(fd: int, path: str) -> None:
    """Raise BlockError if a node uses the same file as `fd`; `path` is for the message."""
    node = user_of(identify(fd))
    if node is not None:
        raise BlockError(f"'{path}' is in use by node '{node.node_name}'")


def check_formattable(node: BlockNode) -> None:
    """Raise BlockError if other nodes use the files below this node."""
    below = _with_storage(node, through_backing=False)
    for each in below:
        other = user_of(each.storage, below)
        if other is not None:
            raise BlockError(f"'{each.filename}' is in use by node '{other.node_name}'")


def check_apart(node: BlockNode) -> None:
    """Raise BlockError if two children of a node use the same file, and one may write to it.

    A node may not write to a file of its backing image, either. Several children may read the same
    file, as in QEMU. A reopen checks again.
    """
    for (role, edge), (other_role, other) in combinations(node.children.items(), 2):
        ones = _with_storage(edge.node, through_backing=role == BACKING)
        others = _with_storage(other.node, through_backing=other_role == BACKING)
        same = _same_storage(ones, others, written=True)
        if same is not None:
            raise BlockError(
                f"The {role} and {other_role} children of node '{node.node_name}' are the same "
                f"file, '{same.filename}'"
            )


def check_no_loop(overlay: BlockNode, base: BlockNode) -> None:
    """Raise BlockError if an overlay and its new backing image use the same file."""
    own = _with_storage(overlay, through_backing=False)
    same = _same_storage(own, _with_storage(base, through_backing=True))
    if same is not None:
        raise BlockError(
            f"Making '{base.node_name}' a {BACKING} child of '{overlay.node_name}' would create a "
            f"cycle: both consist of the file '{same.filename}'"
        )


def _with_storage(node: BlockNode, *, through_backing: bool) -> list[StorageNode]:
    """Return the nodes with storage among a node and its descendants.

    `through_backing`: include backing images.
    """
    if through_backing:
        return _storing(with_descendants([node]))
    found: list[BlockNode] = []
    pending = [node]
    while pending:
        each = pending.pop()
        if each not in found:
            found.append(each)
            pending += [edge.node for role, edge in each.children.items() if role != BACKING]
    return _storing(found)


def _storing(nodes: Iterable[BlockNode]) -> list[StorageNode]:
    return [node for node in nodes if isinstance(node, StorageNode)]


def _same_storage(
    ones: list[StorageNode], others: list[StorageNode], *, written: bool = False
) -> StorageNode | None:
    """Return a node of the first list whose file is also used by another node of the second list.

    `written`: only if one of the two may write to it.
    """
    for one in ones:
        for other in others:
            if one is other or not one.storage & other.storage:
                continue
            if not written or not one.read_only or not other.read_only:
                return one
    return None

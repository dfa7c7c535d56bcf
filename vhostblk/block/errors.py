# SPDX-License-Identifier: Apache-2.0
"""The block layer's error family.

Opening, configuring and permissions fail with `BlockError`; I/O fails with `OSError`, whose errno
each export translates (virtio status, NBD error, errno over FUSE).
"""

from __future__ import annotations

from enum import Enum

from vhostblk.errors import VhostblkError


class BlockError(VhostblkError):
    """A node can't be opened, found, changed or used as asked."""


class NoNode(Enum):
    """What QEMU's commands say, each in its own words, where no node has a name."""

    DEVICE_OR_NODE = "Cannot find device='{device}' nor node-name='{name}'"
    NODE_NAME = "Failed to find node with node-name='{name}'"
    NODE = "Node '{name}' not found"
    DEVICE = "Device '{name}' not found"
    BOTTOM = "Bottom node '{name}' not found"


class NodeNotFoundError(BlockError):
    """No node has that name."""

    def __init__(self, name: str, words: NoNode, device: str = "") -> None:
        """`device` is shown as the name of a device that could have been meant instead."""
        super().__init__(words.value.format(name=name, device=device), node=name)


class PermissionConflictError(BlockError):
    """Two users of a node don't tolerate each other."""


class ImageLockedError(BlockError):
    """Another process uses the image in a way that excludes ours."""

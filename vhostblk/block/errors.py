# SPDX-License-Identifier: Apache-2.0
"""Errors of the block layer.

Opening, configuring and permissions fail with `BlockError`; I/O fails with `OSError`, whose errno
each export translates (virtio status, NBD error, errno over FUSE).
"""

from __future__ import annotations

from enum import Enum

from vhostblk.errors import VhostblkError


class BlockError(VhostblkError):
    """A node can't be opened, found, changed or used as requested."""


class NoNode(Enum):
    """Messages of QEMU's commands for an unknown node name."""

    DEVICE_OR_NODE = "Cannot find device='{device}' nor node-name='{name}'"
    NODE_NAME = "Failed to find node with node-name='{name}'"
    NODE = "Node '{name}' not found"
    DEVICE = "Device '{name}' not found"
    BOTTOM = "Bottom node '{name}' not found"


class NodeNotFoundError(BlockError):
    """No node has this name."""

    def __init__(self, name: str, words: NoNode, device: str = "") -> None:
        """`device` is the device name in the message, for commands that take a device or a node."""
        super().__init__(words.value.format(name=name, device=device), node=name)


class PermissionConflictError(BlockError):
    """Two users of a node have conflicting permissions."""


class ImageLockedError(BlockError):
    """Another process holds conflicting locks on the image."""

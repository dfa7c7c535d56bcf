# SPDX-License-Identifier: Apache-2.0
"""The block layer's error family.

Opening, configuring and permissions fail with `BlockError`; I/O fails with `OSError`, whose errno
each export translates (virtio status, NBD error, errno over FUSE).
"""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class BlockError(VhostblkError):
    """A node can't be opened, found, changed or used as asked."""


class NodeNotFoundError(BlockError):
    """No node has that name."""


class PermissionConflictError(BlockError):
    """Two users of a node don't tolerate each other."""


class ImageLockedError(BlockError):
    """Another process uses the image in a way that excludes ours."""

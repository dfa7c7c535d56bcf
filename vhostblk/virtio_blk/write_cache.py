# SPDX-License-Identifier: Apache-2.0
"""Whether writes may stay in caches until the driver flushes (VIRTIO 1.3, 5.2.5.2 and 5.2.6.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.virtio_blk.features import Feature

if TYPE_CHECKING:
    from vhostblk.block.graph.backend import BlockBackend


class WriteCache:
    """The cache mode of a block backend, after the export's options and its driver.

    The mode that `backend` has at first is the one of the options.
    """

    def __init__(self, backend: BlockBackend) -> None:
        self._backend = backend
        self._default = backend.enable_write_cache
        self._features = 0
        #: What the driver wrote to `writeback`, if it did.
        self.chosen: bool | None = None

    def choose(self, enabled: bool) -> None:
        """Take what the driver wrote to `writeback`."""
        self.chosen = enabled
        self._set()

    def set_features(self, features: int) -> None:
        """Take the features that the driver acknowledged.

        Drivers follow each other on one connection (firmware, then the system), so nothing that
        one of them implied is kept for the next.
        """
        self._features = features
        if not features & Feature.CONFIG_WCE.mask:
            self.chosen = None
        self._set()

    def _set(self) -> None:
        """Work out the mode.

        There is no cache with the option `writethrough`. Else the driver has its choice; without
        one there is a cache, unless the driver can't flush. Before the features are known there is
        a cache.
        """
        may = self.chosen
        if may is None:
            may = not self._features or bool(self._features & Feature.FLUSH.mask)
        self._backend.enable_write_cache = self._default and may

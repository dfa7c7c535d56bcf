# SPDX-License-Identifier: Apache-2.0
"""What drivers can make for `blockdev-snapshot-sync`: files, and overlays in them.

These are capabilities of a driver's class; there is no node yet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vhostblk.block.graph.graph import Graph


class MakesImages:
    """A driver whose images can be made. By itself: they can't lie on others."""


class MakesFiles(MakesImages, ABC):
    """A protocol driver that makes what images are stored in."""

    @classmethod
    @abstractmethod
    async def make_file(cls, filename: str, graph: Graph) -> None:
        """Make an empty file; raises BlockError or OSError."""


class MakesOverlays(MakesImages, ABC):
    """A format driver whose images can lie on others."""

    @classmethod
    @abstractmethod
    async def make_overlay(cls, file: Any, size: int, graph: Graph) -> None:
        """Make an image of at least `size` bytes in `file`, the options of a node.

        Raises BlockError or OSError.
        """

# SPDX-License-Identifier: Apache-2.0
"""The capabilities of drivers to create images for `blockdev-snapshot-sync`.

They are capabilities of a driver's class: the node doesn't exist yet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vhostblk.block.graph.graph import Graph


class MakesImages:
    """A driver that can create images without a backing file."""


class MakesFiles(MakesImages, ABC):
    """A protocol driver that can create files for images."""

    @classmethod
    @abstractmethod
    async def make_file(cls, filename: str, graph: Graph) -> None:
        """Create an empty file; raises BlockError or OSError."""


class MakesOverlays(MakesImages, ABC):
    """A format driver that can create images with a backing file."""

    @classmethod
    @abstractmethod
    async def make_overlay(cls, file: Any, size: int, graph: Graph) -> None:
        """Create an image of at least `size` bytes in `file`, the options of a node.

        Raises BlockError or OSError.
        """

# SPDX-License-Identifier: Apache-2.0
"""The capability of an image to have a backing image, and to record its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhostblk.block.graph.node import BlockNode


class NamesBacking(ABC):
    """A node that can have a child "backing", for ranges that are not allocated in its image."""

    #: The name of the backing file according to the image; "": none.
    auto_backing_name: str = ""

    @abstractmethod
    async def change_backing_file(self, name: str, driver: str | None) -> None:
        """Record another backing file name and format in the image; raises OSError.

        The child "backing" doesn't change.
        """


def supports_backing(node: BlockNode) -> bool:
    """Return whether the driver supports a child "backing" that can be added and removed."""
    return isinstance(node, NamesBacking)


def auto_backing_name(node: BlockNode) -> str:
    """Return the name of the backing file according to the image; "": none."""
    return node.auto_backing_name if isinstance(node, NamesBacking) else ""

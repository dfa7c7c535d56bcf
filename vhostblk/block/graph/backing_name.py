# SPDX-License-Identifier: Apache-2.0
"""The capability of an image to lie on another one, and to name it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhostblk.block.graph.node import BlockNode


class NamesBacking(ABC):
    """A node that can have a child "backing", which has what the image itself does not."""

    #: The name of the child "backing" that opening the image again would lead to; "": none.
    auto_backing_name: str = ""

    @abstractmethod
    async def change_backing_file(self, name: str, driver: str | None) -> None:
        """Have the image name another backing file, and its format; raises OSError.

        The child "backing" stays what it is.
        """


def supports_backing(node: BlockNode) -> bool:
    """Tell whether a node can have a child "backing" that comes and goes."""
    return isinstance(node, NamesBacking)


def auto_backing_name(node: BlockNode) -> str:
    """Return the name of the backing file that opening the image again would lead to; "": none."""
    return node.auto_backing_name if isinstance(node, NamesBacking) else ""

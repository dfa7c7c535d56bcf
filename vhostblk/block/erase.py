# SPDX-License-Identifier: Apache-2.0
"""The capability to erase data securely."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhostblk.block.graph.node import BlockNode


class ErasesSecurely(ABC):
    """A node whose storage may be able to erase securely."""

    @property
    @abstractmethod
    def erases_securely(self) -> bool:
        """Whether `psecure_erase` is supported."""

    @abstractmethod
    async def psecure_erase(self, offset: int, length: int) -> None:
        """Erase a range such that the data can't be recovered from the storage either."""


def eraser_of(node: BlockNode) -> ErasesSecurely | None:
    """Return the capability of a node to erase securely, or None."""
    found: ErasesSecurely | None = node.capability(ErasesSecurely)
    return found if found is not None and found.erases_securely else None

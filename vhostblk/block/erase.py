# SPDX-License-Identifier: Apache-2.0
"""The capability to forget data such that nobody can read it again."""

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
        """Tell whether `psecure_erase` works."""

    @abstractmethod
    async def psecure_erase(self, offset: int, length: int) -> None:
        """Forget a range such that nobody can read it again, not from the storage itself either."""


def eraser_of(node: BlockNode) -> ErasesSecurely | None:
    """Return what erases a node securely; None: nothing can."""
    found: ErasesSecurely | None = node.capability(ErasesSecurely)
    return found if found is not None and found.erases_securely else None

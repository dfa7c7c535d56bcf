# SPDX-License-Identifier: Apache-2.0
"""State of nodes that is in memory only, so that a hand-over to another process would lose it."""

from __future__ import annotations

from abc import ABC, abstractmethod


class KeptInMemory(ABC):
    """A node that may keep state in memory only."""

    @property
    @abstractmethod
    def only_in_memory(self) -> str:
        """What would be lost if the node were opened anew with its options: "its zones"."""

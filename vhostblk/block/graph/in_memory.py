# SPDX-License-Identifier: Apache-2.0
"""What a node keeps in memory alone, so that opening it anew would give another one."""

from __future__ import annotations

from abc import ABC, abstractmethod


class KeptInMemory(ABC):
    """A node that may keep something of its own in memory: another process can't have it."""

    @property
    @abstractmethod
    def only_in_memory(self) -> str:
        """What would be lost if the node were opened anew with its options: "its zones"."""

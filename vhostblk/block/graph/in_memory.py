# SPDX-License-Identifier: Apache-2.0
"""State that nodes keep in memory only. A hand-over to another process would lose it."""

from __future__ import annotations

from abc import ABC, abstractmethod


class KeptInMemory(ABC):
    """A node that may have state in memory only."""

    @property
    @abstractmethod
    def only_in_memory(self) -> str:
        """State that is lost if the node is opened anew, for messages: "its zones"."""

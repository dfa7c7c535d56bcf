# SPDX-License-Identifier: Apache-2.0
"""The capability to gain and lose children at run time (`x-blockdev-change`)."""

from __future__ import annotations

from abc import ABC, abstractmethod


class ChangesChildren(ABC):
    """A node whose children may be added and removed; the graph is drained."""

    @abstractmethod
    def new_role(self) -> str:
        """Return the role that one more child would have; raises BlockError."""

    @abstractmethod
    def child_added(self, role: str) -> None:
        """Go by one more child from now on. Never fails."""

    @abstractmethod
    def check_loss(self, role: str) -> None:
        """Raise BlockError where there has to be such a child."""

    @abstractmethod
    def child_removed(self, role: str) -> None:
        """Go by one child less from now on. Never fails."""

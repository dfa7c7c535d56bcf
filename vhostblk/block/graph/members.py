# SPDX-License-Identifier: Apache-2.0
"""The capability to add and remove children at run time (`x-blockdev-change`)."""

from __future__ import annotations

from abc import ABC, abstractmethod


class ChangesChildren(ABC):
    """A node whose children can be added and removed, while it is drained."""

    @abstractmethod
    def new_role(self) -> str:
        """Return the role for a new child; raises BlockError."""

    @abstractmethod
    def child_added(self, role: str) -> None:
        """Start to use a new child. Never fails."""

    @abstractmethod
    def check_loss(self, role: str) -> None:
        """Raise BlockError if the node needs this child."""

    @abstractmethod
    def child_removed(self, role: str) -> None:
        """Stop using a child. Never fails."""

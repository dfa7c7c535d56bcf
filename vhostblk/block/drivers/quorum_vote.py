# SPDX-License-Identifier: Apache-2.0
"""Votes: who is for which version, and which one wins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

V = TypeVar("V")


class Versions(Generic[V]):
    """The versions of one thing, with the children who are for each."""

    def __init__(self) -> None:
        self._voters: dict[V, list[int]] = {}

    def __len__(self) -> int:
        return len(self._voters)

    def __iter__(self) -> Iterator[V]:
        return iter(self._voters)

    def add(self, version: V, voter: int) -> None:
        """Count a vote."""
        self._voters.setdefault(version, []).append(voter)

    def votes(self, version: V) -> int:
        """Return how many are for a version."""
        return len(self._voters[version])

    def voters(self, version: V) -> list[int]:
        """Return who is for a version."""
        return self._voters[version]

    @property
    def winner(self) -> V:
        """The version with the most votes; of several the one that turned up last."""
        return max(reversed(self._voters), key=self.votes)

    def outvoted(self) -> list[int]:
        """Return who is for another version than the winner, the last first, version by version."""
        winner = self.winner
        return [
            voter
            for version in reversed(self._voters)
            if version != winner
            for voter in reversed(self._voters[version])
        ]

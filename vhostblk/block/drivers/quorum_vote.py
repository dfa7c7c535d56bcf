# SPDX-License-Identifier: Apache-2.0
"""Votes: children by version, and the winning version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

V = TypeVar("V")


class Versions(Generic[V]):
    """The versions of a result, with the children that voted for each."""

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
        """Return the number of votes for a version."""
        return len(self._voters[version])

    def voters(self, version: V) -> list[int]:
        """Return the children that voted for a version."""
        return self._voters[version]

    @property
    def winner(self) -> V:
        """The version with the most votes; of several, the one that was seen last."""
        return max(reversed(self._voters), key=self.votes)

    def outvoted(self) -> list[int]:
        """Return the children that voted for other versions, by version, the last version first."""
        winner = self.winner
        return [
            voter
            for version in reversed(self._voters)
            if version != winner
            for voter in reversed(self._voters[version])
        ]

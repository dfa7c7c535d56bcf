# SPDX-License-Identifier: Apache-2.0
"""Managers: what sends the persistent reservation commands of nodes (`pr-manager`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from vhostblk.errors import VhostblkError

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from vhostblk.reservations.wire import Reply


class ManagerError(VhostblkError):
    """There is no such manager."""


class Manager(ABC):
    """Sends commands to devices."""

    def __init__(self) -> None:
        #: Names of the nodes that refer to it.
        self.users: set[str] = set()
        #: Commands in flight: their nodes may have been removed meanwhile.
        self.commands = 0

    @property
    def in_use(self) -> bool:
        """Whether it must stay."""
        return bool(self.users or self.commands)

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to whatever sends the commands."""
        return True

    @abstractmethod
    async def run(self, fd: int, cdb: bytes, parameters: bytes) -> Reply:
        """Send a PERSISTENT RESERVE IN or OUT; whatever fails is in the reply.

        `fd` stays open meanwhile.
        """

    def close(self) -> None:  # noqa: B027 (not all have something to close)
        """Give up what it has open."""


class Managers:
    """The managers of one daemon, by id."""

    def __init__(self) -> None:
        self._managers: dict[str, Manager] = {}
        #: Ids of objects of any type.
        self.objects: Container[str] = ()

    def __iter__(self) -> Iterator[tuple[str, Manager]]:
        return iter(list(self._managers.items()))

    def add(self, manager_id: str, manager: Manager) -> None:
        """Make a manager known; its id is free."""
        self._managers[manager_id] = manager

    def find(self, manager_id: str) -> Manager:
        """Return a manager; raises ManagerError."""
        found = self._managers.get(manager_id)
        if found is not None:
            return found
        if manager_id in self.objects:
            raise ManagerError(
                f"Object with id '{manager_id}' is not a persistent reservation manager"
            )
        raise ManagerError(f"No persistent reservation manager with id '{manager_id}'")

    def remove(self, manager_id: str) -> None:
        """Close a manager that no node refers to."""
        manager = self._managers.pop(manager_id)
        assert not manager.in_use, "a persistent reservation manager in use"
        manager.close()

# SPDX-License-Identifier: Apache-2.0
"""Persistent reservation managers: by a helper, and by the kernel's own commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from msgspec.structs import replace

from vhostblk.objects.base import UserObject
from vhostblk.objects.tree import PropertyError
from vhostblk.objects.types import QomType, register_type
from vhostblk.reservations.client import HelperClient
from vhostblk.reservations.kernel import KernelManager
from vhostblk.schema.objects.pr_manager import (
    PrManagerHelperProperties,
    PrManagerKernelProperties,
)
from vhostblk.schema.reservations import PrManagerStatusChanged

if TYPE_CHECKING:
    from vhostblk.objects.base import Surroundings
    from vhostblk.reservations.manager import Manager
    from vhostblk.schema.object import ObjectOptions

register_type(QomType("pr-manager", "object", abstract=True, interface="user-creatable"))


class PrManagerObject(UserObject):
    """What both kinds have in common."""

    manager: Manager

    def added(self) -> None:
        """Let nodes refer to it."""
        self.around.graph.pr_managers.add(self.id, self.manager)

    def remove(self) -> None:
        """Close the manager."""
        self.around.graph.pr_managers.remove(self.id)

    def discard(self) -> None:
        """Close the manager; the nodes are gone."""
        self.manager.close()

    @property
    def in_use(self) -> bool:
        """Whether a node refers to it, or a command is in flight."""
        return self.manager.in_use


class PrManagerHelperObject(PrManagerObject):
    """A connection to a helper; making it waits for the helper."""

    options_type: ClassVar[type[ObjectOptions]] = PrManagerHelperProperties
    qom_type: ClassVar[QomType] = register_type(
        QomType("pr-manager-helper", "pr-manager", properties={"path": "string"})
    )
    reads_files: ClassVar[bool] = True

    def __init__(self, options: PrManagerHelperProperties, around: Surroundings) -> None:
        super().__init__(options, around)
        self._client = self.manager = HelperClient(options.path, self._tell)
        self._client.connect()

    def added(self) -> None:
        """Let nodes refer to it, and tell that there is a connection."""
        super().added()
        self._tell()

    def write(self, name: str, value: object) -> None:
        """Take another path, for the next connection."""
        if not isinstance(value, str):
            raise PropertyError(f"Invalid parameter type for '{name}', expected: string")
        self.options = replace(self.options, path=value)
        self._client.path = value

    def _tell(self) -> None:
        self.around.graph.events.emit(
            "PR_MANAGER_STATUS_CHANGED",
            PrManagerStatusChanged(id=self.id, connected=self._client.is_connected),
        )


class PrManagerKernelObject(PrManagerObject):
    """The kernel's own commands."""

    options_type: ClassVar[type[ObjectOptions]] = PrManagerKernelProperties
    qom_type: ClassVar[QomType] = register_type(
        QomType("x-vhostblk-pr-manager-kernel", "pr-manager")
    )

    def __init__(self, options: PrManagerKernelProperties, around: Surroundings) -> None:
        super().__init__(options, around)
        self.manager = KernelManager()

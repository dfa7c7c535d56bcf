# SPDX-License-Identifier: Apache-2.0
"""The export contract: a `BlockBackend` shown to clients in one protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from vhostblk.errors import VhostblkError

if TYPE_CHECKING:
    from vhostblk.block.graph.backend import BlockBackend


class Export(ABC):
    """One export: made with its block backend, started once, stopped once."""

    #: The QAPI name (`BlockExportType`).
    type: ClassVar[str]

    def __init__(self, export_id: str, backend: BlockBackend) -> None:
        self.id = export_id
        self.backend = backend

    @abstractmethod
    async def start(self, carried: Any = None, *, movable: bool = False) -> None:
        """Begin to listen; clients may connect once this returns.

        With `carried`, which another export's `suspend` returned, continue from there once `resume`
        is called. `movable`: `suspend` may be called on this export. Raises VhostblkError, and then
        leaves nothing behind.
        """

    def resume(self) -> None:
        """Take requests, after a start with `carried`: the other process doesn't any more."""
        self.backend.resume()

    async def suspend(self) -> Any:
        """Stop, and leave clients connected; return what `start` takes elsewhere."""
        raise VhostblkError(f"Exports of type '{self.type}' can't be handed over")

    @abstractmethod
    async def stop(self) -> None:
        """Disconnect clients, finish requests in flight, flush, remove what `start` created."""

    @property
    def clients(self) -> int:
        """Tell how many clients are connected; the export isn't removed under them unasked."""
        return 0

    @property
    def made_files(self) -> list[str]:
        """List the files that `stop` will remove."""
        return []

    def statistics(self) -> dict[int, dict[str, Any]]:
        """Return what each queue has done, by its index, in the form of `schema.export`."""
        return {}

# SPDX-License-Identifier: Apache-2.0
"""The export contract: a `BlockBackend` shown to clients in one protocol.

Nothing outside a type's own package asks which type an export is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from vhostblk.errors import VhostblkError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import msgspec

    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.engine.iothreads import Iothreads
    from vhostblk.net.listener import Listener
    from vhostblk.schema.export import BlockExportOptions


class Descriptors(Protocol):
    """File descriptors that go along with what one process says to another."""

    def add(self, fd: int) -> int:
        """Send a descriptor along, which stays the caller's; return its place."""

    def take(self, place: int) -> int:
        """Take the descriptor at a place over; raises VhostblkError where there is none."""


class Carried(ABC):
    """What moves of an export to another process: made by `suspend`, taken by `start`."""

    #: Whether `start` fails where a client can't go on; else that client is disconnected.
    required = True

    @property
    @abstractmethod
    def listeners(self) -> Sequence[Listener]:
        """The listening sockets; what files they own is the caller's business."""

    @abstractmethod
    def encode(self, fds: Descriptors) -> msgspec.Raw:
        """Describe it as JSON for the other process."""

    @abstractmethod
    def close(self) -> None:
        """Close all that it has: another process has it, or nobody wants it."""


class Export(ABC):
    """One export: made with its block backend, started once, stopped once."""

    #: The struct of its options; the struct's tag is the type's name.
    options_type: ClassVar[type[BlockExportOptions]]
    #: What offset and length of a client's requests are multiples of; others are refused.
    request_alignment: ClassVar[int] = 1

    def __init__(self, options: Any, backend: BlockBackend, iothreads: Iothreads) -> None:
        """Raises VhostblkError where the node can't be shown in this way.

        `options` is of the class's `options_type`.
        """
        self.id: str = options.id
        self.type = str(self.options_type.__struct_config__.tag)
        self.backend = backend
        self.iothreads = iothreads

    @classmethod
    def connect_hint(cls, options: Any) -> list[str] | None:
        """Return the QEMU arguments that connect a machine; None where there is nothing to say.

        Called before the export is made, which may take descriptors over that `options` name.
        """
        return None

    @classmethod  # noqa: B027 (most have nothing to do)
    async def prepare(cls) -> None:
        """Import what clients need, so that none waits for that."""

    @classmethod
    def decode(cls, state: msgspec.Raw, fds: Descriptors) -> tuple[Carried, list[str | None]]:
        """Undo `Carried.encode`; also return which file each listener is to own later.

        Raises VhostblkError.
        """
        raise VhostblkError(f"Exports of type '{cls.__name__}' can't be handed over")

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

    async def suspend(self) -> Carried:
        """Stop, and leave clients connected; return what `start` takes elsewhere."""
        raise VhostblkError(f"Exports of type '{self.type}' can't be handed over")

    @abstractmethod
    async def stop(self) -> None:
        """Disconnect clients, finish requests in flight, flush, remove what `start` created."""

    @property
    def clients(self) -> int:
        """How many clients are connected; the export isn't removed under them unasked."""
        return 0

    @property
    def made_files(self) -> list[str]:
        """The files that `stop` will remove."""
        return []

    def statistics(self) -> dict[int, dict[str, Any]]:
        """Return what each queue has done, by its index, in the form of `schema.export`."""
        return {}

# SPDX-License-Identifier: Apache-2.0
"""The contract of exports: a `BlockBackend` that clients use through one protocol.

Code outside a type's own package does not depend on the type of an export.
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
    """File descriptors that are sent with a message; the message has their places."""

    def add(self, fd: int) -> int:
        """Send a descriptor, which the caller keeps; return its place."""

    def take(self, place: int) -> int:
        """Return the descriptor at a place, which the caller owns then; raises VhostblkError."""


class Carried(ABC):
    """The state of an export that moves to another process, from `suspend` to `start`."""

    #: Whether `start` fails if a client can't continue; otherwise the client is disconnected.
    required = True

    @property
    @abstractmethod
    def listeners(self) -> Sequence[Listener]:
        """The listening sockets. The caller decides which of them owns its socket file."""

    @abstractmethod
    def encode(self, fds: Descriptors) -> msgspec.Raw:
        """Return the state as JSON for the other process."""

    @abstractmethod
    def close(self) -> None:
        """Close all descriptors."""


class Export(ABC):
    """One export: created with its block backend, started once, stopped once."""

    #: The struct of its options; the struct's tag is the type's name.
    options_type: ClassVar[type[BlockExportOptions]]
    #: Alignment of offset and length of clients' requests; others are refused.
    request_alignment: ClassVar[int] = 1

    def __init__(self, options: Any, backend: BlockBackend, iothreads: Iothreads) -> None:
        """`options` is of the class's `options_type`; `iothreads` is for subclasses.

        Raises VhostblkError if the node can't be exported in this way.
        """
        self.id: str = options.id
        self.type = type_name(type(self))
        self.backend = backend

    @classmethod
    def connect_hint(cls, options: Any) -> list[str] | None:
        """Return the QEMU arguments that connect a virtual machine, or None.

        Called before the export is created, which may take over descriptors in `options`.
        """
        return None

    @classmethod  # noqa: B027 (optional)
    async def prepare(cls) -> None:
        """Import the modules for serving clients, so that no client waits for that."""

    @classmethod
    def decode(cls, state: msgspec.Raw, fds: Descriptors) -> tuple[Carried, list[str | None]]:
        """Undo `Carried.encode`; also return the socket file of each listener.

        Raises VhostblkError or msgspec.DecodeError.
        """
        raise _not_movable(cls)

    @abstractmethod
    async def start(self, carried: Any = None, *, movable: bool = False) -> None:
        """Begin to listen; clients can connect once this returns.

        With `carried`, which another export's `suspend` returned, continue from there once `resume`
        is called. `movable`: `suspend` may be called on this export. Raises VhostblkError, and then
        leaves nothing behind.
        """

    def resume(self) -> None:
        """Take requests, after a start with `carried`; the other process takes none any more."""
        self.backend.resume()

    async def suspend(self) -> Carried:
        """Complete requests and keep clients connected; return the state for `start` elsewhere.

        This waits for no client, because all clients of all exports wait until the last export is
        suspended. The caller flushes the nodes. If this raises VhostblkError, or is cancelled, the
        export continues as before.
        """
        raise _not_movable(type(self))

    @abstractmethod
    async def stop(self) -> None:
        """Disconnect clients, complete requests in flight, flush, remove what `start` created."""

    @property
    def clients(self) -> int:
        """The number of connected clients; without `force` it must be 0 to remove the export."""
        return 0

    @property
    def made_files(self) -> list[str]:
        """The files that `stop` will remove."""
        return []

    def statistics(self) -> dict[int, dict[str, Any]]:
        """Return the statistics of each queue by its index, in the form of `schema.export`."""
        return {}


def type_name(kind: type[Export]) -> str:
    """Return the name of an export type."""
    return str(kind.options_type.__struct_config__.tag)


def _not_movable(kind: type[Export]) -> VhostblkError:
    return VhostblkError(f"Exports of type '{type_name(kind)}' can't be handed over")

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
    """File descriptors that are passed along with a message; their places stand in the message."""

    def add(self, fd: int) -> int:
        """Pass a descriptor, which stays the caller's; return its place."""

    def take(self, place: int) -> int:
        """Return the descriptor at a place, which the caller owns then; raises VhostblkError."""


class Carried(ABC):
    """The state of an export that moves to another process, from `suspend` to `start`."""

    #: If a client can't continue: true: `start` fails; false: the client is disconnected.
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
    """One export: made with its block backend, started once, stopped once."""

    #: The struct of its options; the struct's tag is the type's name.
    options_type: ClassVar[type[BlockExportOptions]]
    #: What offset and length of a client's requests are multiples of; others are refused.
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

        Called before the export is made, as that may take over descriptors that `options` names.
        """
        return None

    @classmethod  # noqa: B027 (most have nothing to do)
    async def prepare(cls) -> None:
        """Import the modules that serving clients needs, so that no client waits for it."""

    @classmethod
    def decode(cls, state: msgspec.Raw, fds: Descriptors) -> tuple[Carried, list[str | None]]:
        """Undo `Carried.encode`; also return the socket file of each listener.

        Raises VhostblkError or msgspec.DecodeError.
        """
        raise _not_movable(cls)

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
        """Finish requests, and leave clients connected; return what `start` takes elsewhere.

        It waits for no client: all clients of all exports wait until the last export has finished.
        The caller flushes the nodes. If this raises VhostblkError, or is cancelled, the export goes
        on as before.
        """
        raise _not_movable(type(self))

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


def type_name(kind: type[Export]) -> str:
    """Return the name of an export type."""
    return str(kind.options_type.__struct_config__.tag)


def _not_movable(kind: type[Export]) -> VhostblkError:
    return VhostblkError(f"Exports of type '{type_name(kind)}' can't be handed over")

# SPDX-License-Identifier: Apache-2.0
"""The contract of object types: a module of this package, or of a plug-in, has one class each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from vhostblk.objects.tree import PropertyError, QomObject

if TYPE_CHECKING:
    from vhostblk.block.graph.graph import Graph
    from vhostblk.crypto.keys import Keys
    from vhostblk.engine.iothreads import Iothreads
    from vhostblk.objects.types import QomType
    from vhostblk.schema.object import ObjectOptions


class Surroundings(msgspec.Struct, frozen=True):
    """What objects are made for: the parts of a daemon that use them, by their ids."""

    graph: Graph
    iothreads: Iothreads
    #: What the objects that exist already offer.
    keys: Keys


class UserObject(ABC):
    """One object: made, perhaps changed, removed once nothing uses it."""

    #: The struct of its options; the struct's tag is the type's name.
    options_type: ClassVar[type[ObjectOptions]]
    #: The type in the object tree.
    qom_type: ClassVar[QomType]
    #: Making one reads files. `Objects.add_in_background` then makes it on a thread.
    reads_files: ClassVar[bool] = False

    def __init__(self, options: Any, around: Surroundings) -> None:
        """Make the object known to what uses it; raises VhostblkError.

        `options` is of the class's `options_type`, and checked.
        """
        self.id: str = options.id
        self.options = options
        self.around = around

    def added(self) -> None:  # noqa: B027 (most have nothing to do)
        """Do what has to wait until the object is found by its id."""

    @abstractmethod
    def remove(self) -> None:
        """Make it unknown again; nothing uses it."""

    def discard(self) -> None:  # noqa: B027 (most have nothing to do)
        """Give up what it holds itself; the daemon ends, and what it was made for is gone."""

    @property
    def in_use(self) -> bool:
        """Whether something uses it, apart from exports that name it as their iothread."""
        return False

    @property
    def offer(self) -> object:
        """What others get that name the object (`crypto.keys`); None: nothing."""
        return None

    @property
    def files(self) -> list[str]:
        """Files and directories that may be read again while the object exists."""
        return []

    def definition(self) -> dict[str, Any]:
        """Return the options, as plain types, that make the object again as it is now."""
        plain: dict[str, Any] = msgspec.to_builtins(self.options)
        return plain

    def read(self, name: str) -> object:
        """Return a property of its type; a string that was not given is empty, as in QEMU."""
        return msgspec.to_builtins(self.options).get(name, "")

    def write(self, name: str, value: object) -> None:
        """Change a property of its type; raises VhostblkError."""
        raise PropertyError(f"Property '{self.qom_type.name}.{name}' is not writable")

    def show(self) -> QomObject:
        """Return it as the object tree has it."""
        return QomObject(self.qom_type.name, read=self.read, write=self.write)

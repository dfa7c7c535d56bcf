# SPDX-License-Identifier: Apache-2.0
"""The contract of object types: a module of this package, or of a plug-in, has one class each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from vhostblk.objects.tree import PropertyError, QomObject

if TYPE_CHECKING:
    from vhostblk.block.graph.graph import Graph
    from vhostblk.engine.iothreads import Iothreads
    from vhostblk.objects.types import QomType
    from vhostblk.schema.object import ObjectOptions


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What objects are made for: the parts of a daemon that use them, by their ids."""

    graph: Graph
    iothreads: Iothreads


class UserObject(ABC):
    """One object: made, perhaps changed, removed once nothing uses it."""

    #: The struct of its options; the struct's tag is the type's name.
    options_type: ClassVar[type[ObjectOptions]]
    #: The type in the object tree.
    qom_type: ClassVar[QomType]

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

    @property
    def in_use(self) -> bool:
        """Whether something uses it, apart from exports that name it as their iothread."""
        return False

    def definition(self) -> dict[str, Any]:
        """Return the options, as plain types, that make the object again as it is now."""
        plain: dict[str, Any] = msgspec.to_builtins(self.options)
        return plain

    def read(self, name: str) -> object:
        """Return a property of its type."""
        return msgspec.to_builtins(self.options)[name]

    def write(self, name: str, value: object) -> None:
        """Change a property of its type; raises VhostblkError."""
        raise PropertyError(f"Property '{self.qom_type.name}.{name}' is not writable")

    def show(self) -> QomObject:
        """Return it as the object tree has it."""
        return QomObject(self.qom_type.name, read=self.read, write=self.write)

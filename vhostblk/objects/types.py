# SPDX-License-Identifier: Apache-2.0
"""The types of the object tree: names, ancestors, properties."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from vhostblk.errors import VhostblkError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class TypeNotFoundError(VhostblkError):
    """No type has that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Class '{name}' not found")


class QomType(msgspec.Struct, frozen=True):
    """One type; properties come in QEMU's order, inherited ones first."""

    name: str
    parent: str | None = "object"
    abstract: bool = False
    interface: str | None = None
    #: Name to QAPI type.
    properties: Mapping[str, str] = msgspec.field(default_factory=dict)


#: All types by name. Modules of types add theirs (`register_type`) when they are imported.
TYPES: dict[str, QomType] = {}


def register_type(kind: QomType) -> QomType:
    """Add a type; its ancestors are there already."""
    assert kind.name not in TYPES, f"{kind.name} registered twice"
    TYPES[kind.name] = kind
    return kind


for _kind in (
    QomType("object", None, abstract=True, properties={"type": "string"}),
    QomType("container"),
    QomType("interface", None, abstract=True),
    QomType("user-creatable", "interface", abstract=True),
):
    register_type(_kind)


def ancestors(name: str) -> Iterator[str]:
    """Yield a type, what it derives from and the interfaces that it implements."""
    current: str | None = name
    while current is not None:
        yield current
        kind = TYPES[current]
        if kind.interface is not None:
            yield from ancestors(kind.interface)
        current = kind.parent


def list_types(implements: str | None, *, abstract: bool) -> list[QomType]:
    """Return the types that are, derive from or implement `implements` (None: all), sorted."""
    return [
        kind
        for _, kind in sorted(TYPES.items())
        if (abstract or not kind.abstract)
        and (implements is None or implements in ancestors(kind.name))
    ]


def type_properties(name: str) -> dict[str, str]:
    """Return the properties of a type's objects: names and QAPI types. Raises VhostblkError."""
    if name not in TYPES:
        raise TypeNotFoundError(name)
    line = list(ancestors(name))
    if "object" not in line:
        raise VhostblkError("Parameter 'typename' expects a QOM type")
    properties: dict[str, str] = {}
    for ancestor in reversed(line):
        properties.update(TYPES[ancestor].properties)
    return properties

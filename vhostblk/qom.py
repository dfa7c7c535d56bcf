# SPDX-License-Identifier: Apache-2.0
"""The object tree that `qom-list`, `qom-get` and `qom-set` walk, and its types.

    /                container
    ├── backend      container, always empty
    ├── objects      container: what object-add made
    └── chardevs     container: what chardev-add made

The tree is a view: it is put together from the daemon's own tables when somebody asks. Paths are
QEMU's: absolute, or partial, which then must fit one place only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from vhostblk.chardev.registry import BACKENDS
from vhostblk.errors import VhostblkError
from vhostblk.schema.base import QapiStruct
from vhostblk.schema.convert import from_json
from vhostblk.schema.throttle import UNLIMITED, ThrottleLimits, changed_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vhostblk.block.throttle_group import ThrottleGroup
    from vhostblk.chardev.base import Chardev


class PathNotFoundError(VhostblkError):
    """No object is at that path."""

    def __init__(self, path: str) -> None:
        super().__init__(f"Device '{path}' not found")


class AmbiguousPathError(VhostblkError):
    """A partial path fits several objects."""

    def __init__(self, path: str) -> None:
        super().__init__(f"Path '{path}' is ambiguous")


class PropertyError(VhostblkError):
    """An object has no such property, or it can't be set."""


class TypeNotFoundError(VhostblkError):
    """No type has that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Class '{name}' not found")


@dataclass(frozen=True, slots=True)
class QomType:
    """One type; properties come in QEMU's order, inherited ones first."""

    name: str
    parent: str | None = "object"
    abstract: bool = False
    interface: str | None = None
    #: Name to QAPI type.
    properties: Mapping[str, str] = field(default_factory=dict)


_EVENT_LOOP = {"thread-pool-min": "int", "aio-max-batch": "int", "thread-pool-max": "int"}
_IOTHREAD = {"poll-max-ns": "int", "poll-grow": "int", "poll-shrink": "int"}

_THROTTLE_GROUP = {
    **{f"x-{name}": "int" for name in UNLIMITED.__struct_encode_fields__},
    "limits": "ThrottleLimits",
}

#: All types by name.
TYPES: dict[str, QomType] = {
    kind.name: kind
    for kind in (
        QomType("object", None, abstract=True, properties={"type": "string"}),
        QomType("container"),
        QomType("interface", None, abstract=True),
        QomType("user-creatable", "interface", abstract=True),
        QomType("event-loop-base", "object", True, "user-creatable", _EVENT_LOOP),
        QomType("iothread", "event-loop-base", properties=_IOTHREAD),
        QomType("throttle-group", "object", False, "user-creatable", _THROTTLE_GROUP),
        QomType("chardev", abstract=True),
        QomType("chardev-fd", "chardev", abstract=True),
        QomType("chardev-file", "chardev-fd"),
        QomType("chardev-null", "chardev"),
        QomType("chardev-pipe", "chardev-fd"),
        QomType("chardev-pty", "chardev"),
        QomType("chardev-ringbuf", "chardev"),
        QomType("chardev-serial", "chardev-fd"),
        QomType(
            "chardev-socket",
            "chardev",
            properties={"connected": "bool", "addr": "SocketAddress"},
        ),
        QomType("chardev-stdio", "chardev-fd"),
        QomType("chardev-udp", "chardev"),
    )
}


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
    """List the types that are, derive from or implement `implements` (None: all)."""
    return [
        kind
        for kind in TYPES.values()
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


@dataclass(frozen=True, slots=True)
class QomObject:
    """An object as it is now. `read` gives the value of a property of its type."""

    type: str
    children: Mapping[str, QomObject] = field(default_factory=dict)
    read: Callable[[str], object] | None = None
    #: Sets a property; None where none can be set.
    write: Callable[[str, object], None] | None = None

    def properties(self) -> dict[str, str]:
        """List properties and children, with their types."""
        children = {name: f"child<{child.type}>" for name, child in self.children.items()}
        return type_properties(self.type) | children

    def get(self, name: str, path: str) -> object:
        """Return a property's value; of a child, its path. `path` is where this object is."""
        if name in self.children:
            return f"{path.rstrip('/')}/{name}"
        self._check(name)
        if name == "type":
            return self.type
        assert self.read is not None, name
        return self.read(name)

    def set(self, name: str, value: object) -> None:
        """Change a property; raises VhostblkError."""
        if name not in self.children:
            self._check(name)
        if name in self.children or name == "type" or self.write is None:
            raise PropertyError(f"Property '{self.type}.{name}' is not writable")
        self.write(name, value)

    def _check(self, name: str) -> None:
        if name not in type_properties(self.type):
            raise PropertyError(f"Property '{self.type}.{name}' not found")


def resolve(root: QomObject, path: str) -> tuple[QomObject, str]:
    """Find the object at an absolute or partial path; return it and its absolute path."""
    if path.startswith("/"):
        found = _descend(root, "", path)
        if found is None:
            raise PathNotFoundError(path)
        return found
    matches = [
        match
        for start, where in _walk(root, "")
        if (match := _descend(start, where, path)) is not None
    ]
    if not matches:
        raise PathNotFoundError(path)
    if len(matches) > 1:
        raise AmbiguousPathError(path)
    return matches[0]


def _descend(start: QomObject, where: str, path: str) -> tuple[QomObject, str] | None:
    current = start
    for name in filter(None, path.split("/")):
        if name not in current.children:
            return None
        current = current.children[name]
        where = f"{where}/{name}"
    return current, where or "/"


def _walk(start: QomObject, where: str) -> Iterator[tuple[QomObject, str]]:
    yield start, where
    for name, child in start.children.items():
        yield from _walk(child, f"{where}/{name}")


# Character devices.

_CHARDEV_TYPES = {kind: f"chardev-{name}" for name, (_, kind) in BACKENDS.items()}


def chardev_object(device: Chardev) -> QomObject:
    """Show a character device."""
    kind = _CHARDEV_TYPES[type(device).__name__]
    return QomObject(kind, read=partial(_socket_property, device))


def _socket_property(device: Chardev, name: str) -> object:
    """Return a property of a socket, the only character device that has any of its own."""
    from vhostblk.chardev.socket import SocketChardev

    assert isinstance(device, SocketChardev), name
    if name == "connected":
        return device.is_open
    address = device.address
    kind = type(address).__name__.removesuffix("SocketAddressMembers").lower()
    given = {
        info.encode_name: value
        for info in msgspec.structs.fields(address)
        if (value := getattr(address, info.name)) != info.default
    }
    return {"type": kind, **given}


# Throttle groups.


class _LimitsProperty(QapiStruct, kw_only=True, frozen=True):
    """The property that is a struct, under its name, which messages tell."""

    limits: ThrottleLimits


def throttle_group_object(group: ThrottleGroup) -> QomObject:
    """Show a throttle group."""

    def read(name: str) -> object:
        limits = msgspec.to_builtins(group.limits)
        return limits if name == "limits" else limits[name.removeprefix("x-")]

    def write(name: str, value: object) -> None:
        if name != "limits":
            raise PropertyError("Property cannot be set after initialization")
        change = from_json(_LimitsProperty, {name: value}).limits
        group.set_limits(changed_limits(group.limits, change))

    return QomObject("throttle-group", read=read, write=write)

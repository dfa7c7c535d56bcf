# SPDX-License-Identifier: Apache-2.0
"""The object tree that `qom-list`, `qom-get` and `qom-set` walk.

    /                container
    ├── backend      container, always empty
    ├── objects      container: what object-add made
    └── chardevs     container: what chardev-add made

The tree is a view: it is put together from the daemon's own tables when somebody asks. Paths are
QEMU's: absolute, or partial, which then must fit one place only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from vhostblk.errors import VhostblkError
from vhostblk.objects.types import type_properties

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


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


class QomObject(msgspec.Struct, frozen=True):
    """An object as it is now. `read` gives the value of a property of its type."""

    type: str
    children: Mapping[str, QomObject] = msgspec.field(default_factory=dict)
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

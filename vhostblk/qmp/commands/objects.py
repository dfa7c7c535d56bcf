# SPDX-License-Identifier: Apache-2.0
"""Commands on user-created objects and on the object tree."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vhostblk.objects.registry import load_all
from vhostblk.objects.tree import AmbiguousPathError, PathNotFoundError, QomObject, resolve
from vhostblk.objects.types import list_types, type_properties
from vhostblk.qmp.registry import command
from vhostblk.schema.base import UNSET
from vhostblk.schema.object import ObjectOptions  # noqa: TC001 (read at run time)
from vhostblk.schema.qom import (
    ObjectDel,
    ObjectPropertyInfo,
    ObjectTypeInfo,
    QomGet,
    QomList,
    QomListProperties,
    QomListTypes,
    QomSet,
)

if TYPE_CHECKING:
    from vhostblk.daemon import Daemon


@command("object-add")
async def object_add(daemon: Daemon, arguments: ObjectOptions) -> None:
    """Create an object."""
    await daemon.add_object_in_background(arguments)


@command("object-del")
async def object_del(daemon: Daemon, arguments: ObjectDel) -> None:
    """Remove an object without users."""
    daemon.remove_object(arguments.id)


@command("qom-list")
async def qom_list(daemon: Daemon, arguments: QomList) -> list[ObjectPropertyInfo]:
    """List an object's properties and children."""
    found, _ = resolve(daemon.object_tree(), arguments.path)
    return _property_infos(found.properties())


@command("qom-get")
async def qom_get(daemon: Daemon, arguments: QomGet) -> Any:
    """Return the value of a property."""
    found, path = _find(daemon, arguments.path)
    return found.get(arguments.property, path)


@command("qom-set")
async def qom_set(daemon: Daemon, arguments: QomSet) -> None:
    """Change a property."""
    found, _ = _find(daemon, arguments.path)
    found.set(arguments.property, arguments.value)


@command("qom-list-types")
async def qom_list_types(daemon: Daemon, arguments: QomListTypes) -> list[ObjectTypeInfo]:
    """List types."""
    _load_types()
    implements = None if arguments.implements is UNSET else arguments.implements
    return [
        ObjectTypeInfo(
            name=kind.name,
            abstract=True if kind.abstract else UNSET,
            parent=UNSET if kind.parent is None else kind.parent,
        )
        for kind in list_types(implements, abstract=arguments.abstract)
    ]


@command("qom-list-properties")
async def qom_list_properties(
    daemon: Daemon, arguments: QomListProperties
) -> list[ObjectPropertyInfo]:
    """List the properties of a type's objects."""
    _load_types()
    return _property_infos(type_properties(arguments.typename))


def _load_types() -> None:
    """Import all modules that add types to the object tree's table."""
    load_all()
    importlib.import_module("vhostblk.chardev.qom")


def _find(daemon: Daemon, path: str) -> tuple[QomObject, str]:
    """Return an object; as in QEMU, an ambiguous path is an error like an unknown one."""
    try:
        return resolve(daemon.object_tree(), path)
    except AmbiguousPathError as error:
        raise PathNotFoundError(path) from error


def _property_infos(properties: dict[str, str]) -> list[ObjectPropertyInfo]:
    return [ObjectPropertyInfo(name=name, type=kind) for name, kind in properties.items()]

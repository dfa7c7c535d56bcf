# SPDX-License-Identifier: Apache-2.0
"""Drivers are named in one table, and generic code asks for capabilities.

A string that is the name of a driver may stand in the table and in the driver's own modules. In
others it is something else: `ELSEWHERE` says what.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import vhostblk
from vhostblk.block import registry
from vhostblk.schema import driver_manifest
from vhostblk.schema.branches import Parts
from vhostblk.schema.driver_manifest import DRIVERS, Driver

TOP = Path(vhostblk.__file__).parents[1]
NODES, OPTIONS = "vhostblk.block.drivers", "vhostblk.schema.drivers"

#: Names of drivers that mean something else in a module, or in a package (with a dot behind it).
ELSEWHERE = {
    ("vhostblk.block.graph.inherit", "file"): "the role of a child",
    (NODES + ".", "file"): "the role of a child",
    (NODES + ".blkverify", "raw"): "the role of a child",
    (NODES + ".quorum", "blkverify"): "an option",
    ("vhostblk.chardev.", "file"): "a kind of character device",
    ("vhostblk.schema.chardev", "file"): "a kind of character device",
    ("vhostblk.engine.extents", "file"): "a kind of extent map",
    ("vhostblk.trace.options", "file"): "an option",
    ("vhostblk.errors", "file"): "a part of an error's context",
    ("vhostblk.objects.secret", "file"): "a property",
    ("vhostblk.schema.object", "file"): "a property",
    ("vhostblk.schema.objects.secret", "raw"): "a format of secrets",
    ("vhostblk.schema.common", "io_uring"): "a way to do asynchronous I/O",
    ("vhostblk.schema.crypto", "luks"): "a format of encryption",
    ("vhostblk.schema.crypto", "qcow"): "a format of encryption",
    (OPTIONS + ".qcow2", "luks"): "a format of encryption",
    ("vhostblk.schema.export", "nbd"): "an export type",
}


def _modules() -> dict[str, ast.Module]:
    names = {
        ".".join(path.relative_to(TOP).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((TOP / "vhostblk").rglob("*.py"))
    }
    return {name: ast.parse(path.read_text()) for name, path in names.items()}


MODULES = _modules()


def _parts(driver: Driver) -> list[str]:
    return [
        part
        for value in driver
        for part in ([value] if isinstance(value, str) else getattr(value, "values", list)())
        if ":" in part
    ]


def _own_names(module: str) -> set[str]:
    """Return the drivers that have a part in a module, or in the package it is in."""
    package = module.rpartition(".")[0]
    return {
        name
        for name, driver in DRIVERS.items()
        for part in _parts(driver)
        if (home := part.partition(":")[0]) == module
        or (package not in (NODES, OPTIONS) and home.rpartition(".")[0] == package)
    }


def _is_elsewhere(module: str, name: str) -> bool:
    return any(
        name == other and (module == place or (place[-1] == "." and module.startswith(place)))
        for place, other in ELSEWHERE
    )


def _names_in(tree: ast.AST) -> set[str]:
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in DRIVERS
    }


def _stray_names(module: str) -> set[str]:
    shown = {name for name in _names_in(MODULES[module]) if not _is_elsewhere(module, name)}
    return shown - _own_names(module) if module.startswith((NODES, OPTIONS)) else shown


def test_only_the_table_and_the_driver_name_a_driver() -> None:
    stray = {module: _stray_names(module) for module in MODULES}
    del stray[driver_manifest.__name__]
    assert {module: names for module, names in stray.items() if names} == {}


def test_every_exception_is_needed() -> None:
    for place, name in ELSEWHERE:
        modules = [each for each in MODULES if each == place or each.startswith(place)]
        assert any(name in _names_in(MODULES[each]) for each in modules), (place, name)


def _imported(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.update({node.module}, {f"{node.module}.{each.name}" for each in node.names})
        elif isinstance(node, ast.Import):
            found.update(each.name for each in node.names)
    return {each for each in found if each in MODULES}


def test_generic_code_imports_no_driver() -> None:
    for module, tree in MODULES.items():
        if not module.startswith((NODES, OPTIONS)):
            drivers = {each for each in _imported(tree) if each.startswith((NODES, OPTIONS))}
            assert not drivers, module


def test_a_class_has_the_name_of_the_table() -> None:
    for name in Parts(DRIVERS, "node"):
        assert registry.driver_class(name).driver == name


@pytest.mark.parametrize("kind", [name for name in Driver._fields if name != "refusal"])
def test_the_parts_of_the_table_are_there(kind: str) -> None:
    for driver in DRIVERS.values():
        for part in _parts(Driver(**{kind: getattr(driver, kind)})):
            module, _, attribute = part.partition(":")
            assert hasattr(importlib.import_module(module), attribute), part


def test_tags_are_the_names_of_the_table() -> None:
    for kind in ("options", "create_options", "amend_options", "statistics"):
        for name, part in Parts(DRIVERS, kind).items():
            module, _, attribute = part.partition(":")
            struct = getattr(importlib.import_module(module), attribute)
            assert struct.__struct_config__.tag == name

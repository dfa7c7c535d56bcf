# SPDX-License-Identifier: Apache-2.0
"""Imports point down the list of layers, wherever in a module they stand.

Imports for type checking count, too, except between the rooms of the block layer, whose contracts
name each other.
"""

from __future__ import annotations

import ast
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import vhostblk

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Packages and modules, top first. Those in one line don't know each other.
LAYERS = """
    vhostblk.__main__ vhostblk.pr
    vhostblk.cli
    vhostblk.handover vhostblk.sandbox vhostblk.qmp vhostblk.plugin.testing
    vhostblk
    vhostblk.daemon
    vhostblk.exports.vhost_user_blk
    vhostblk.exports
    vhostblk.vhost_user
    vhostblk.virtio_blk
    vhostblk.virtqueue
    vhostblk.chardev
    vhostblk.objects vhostblk.plugin
    vhostblk.net
    vhostblk.block.amend vhostblk.block.drivers.qcow2
    vhostblk.block.drivers
    vhostblk.block.aio vhostblk.block.copy
    vhostblk.block.graph
    vhostblk.block.create vhostblk.block.bitmaps vhostblk.block.throttle_group
    vhostblk.block.formats vhostblk.block.registry vhostblk.block.zones vhostblk.block.reservable
    vhostblk.block.io
    vhostblk.crypto vhostblk.engine vhostblk.jobs
    vhostblk.events
    vhostblk.trace
    vhostblk.reservations
    vhostblk.schema.drivers vhostblk.schema.exports vhostblk.schema.objects
    vhostblk.schema
    vhostblk.block vhostblk.block.errors vhostblk.block.erase vhostblk.block.lifetime
    vhostblk.block.pause
    vhostblk.errors vhostblk.fatal vhostblk.imports vhostblk.log vhostblk.ratelimit
    vhostblk.stderr vhostblk.stdio vhostblk.systemd vhostblk.threads vhostblk.version
"""

#: Tables of types, which name modules that are imported when they are needed.
TABLES = {
    "vhostblk.schema.driver_manifest",
    "vhostblk.schema.export",
    "vhostblk.schema.object",
    "vhostblk.schema.plugins",
}

TOP = Path(vhostblk.__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(TOP).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((TOP / "vhostblk").rglob("*.py"))
}
_LINES = [line.split() for line in LAYERS.strip().splitlines()]
RANKS = {name: rank for rank, line in enumerate(_LINES) for name in line}


class Import(NamedTuple):
    """A module imports another one; `typing`: type checkers only see it."""

    importer: str
    imported: str
    typing: bool


def room(module: str) -> str:
    """Return the entry of the list that a module belongs to."""
    name = module
    while name not in RANKS:
        name = name.rpartition(".")[0]
    return name


def _imports_in(module: str, node: ast.AST, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from _imports_in(module, child, typing=True)
            continue
        if isinstance(child, ast.ImportFrom) and child.module:
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                yield Import(module, full if full in MODULES else child.module, typing)
        elif isinstance(child, ast.Import):
            yield from (Import(module, alias.name, typing) for alias in child.names)
        elif isinstance(child, ast.Constant) and module not in TABLES:
            named = str(child.value).partition(":")[0]
            yield from (Import(module, name, typing) for name in [named] if name in MODULES)
        yield from _imports_in(module, child, typing)


def imports_of(module: str) -> list[Import]:
    """Find what a module of ours imports of our modules, and names for importing."""
    tree = ast.parse(MODULES[module].read_text())
    return [each for each in _imports_in(module, tree, typing=False) if each.imported in MODULES]


ALL = list(chain.from_iterable(imports_of(module) for module in MODULES))


def test_every_package_is_in_the_list() -> None:
    for module in MODULES:
        assert module == "vhostblk" or room(module) != "vhostblk", module
    assert {room(module) for module in MODULES} == set(RANKS)


@pytest.mark.parametrize("name", sorted(RANKS))
def test_imports_point_down(name: str) -> None:
    for each in ALL:
        source, target = room(each.importer), room(each.imported)
        if source != name or source == target:
            continue
        if each.typing and all(end.startswith("vhostblk.block") for end in (source, target)):
            continue
        assert RANKS[source] < RANKS[target], each


def test_rings_and_guest_memory_know_no_transport() -> None:
    for each in ALL:
        if room(each.importer) == "vhostblk.virtqueue":
            assert room(each.imported) not in ("vhostblk.vhost_user", "vhostblk.net"), each


def _circles(wanted: set[str]) -> list[list[str]]:
    """Return groups of modules that import each other, directly or by way of others."""
    imported: dict[str, set[str]] = {module: set() for module in wanted}
    for each in ALL:
        # What only type checkers see is excepted: contracts name each other, as in `node.children`
        # and `edge.parent`. A module can be read, tested and changed without what it only names.
        if not each.typing and {each.importer, each.imported} <= wanted:
            imported[each.importer].add(each.imported)
    reached = {module: _reached(module, imported) for module in wanted}
    groups = {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in wanted
    }
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _reached(module: str, imported: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    pending = {module}
    while pending:
        following = imported[pending.pop()]
        pending |= following - found
        found |= following
    return found


def test_modules_import_each_other_in_no_circle() -> None:
    """Late imports count; packages do not, as they are imported with each of their modules."""
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    assert _circles(set(MODULES) - packages) == []


def test_a_circle_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    node, edge = "vhostblk.block.graph.node", "vhostblk.block.graph.edge"
    monkeypatch.setattr(f"{__name__}.ALL", [*ALL, Import(node, edge, typing=False)])
    (circle,) = _circles(set(MODULES))
    assert {node, edge} <= set(circle)

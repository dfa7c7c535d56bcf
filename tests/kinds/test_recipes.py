# SPDX-License-Identifier: Apache-2.0
"""The recipes of CONTRIBUTING.md name the files that the examples and the built-in types have."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest

from tests.kinds import tables
from vhostblk.qmp.commands import load_all
from vhostblk.qmp.registry import COMMANDS
from vhostblk.schema.base import QapiStruct
from vhostblk.schema.driver_manifest import DRIVERS
from vhostblk.schema.export import EXPORT_TYPES
from vhostblk.schema.object import OBJECT_TYPES

TOP = Path(__file__).parents[2]

DRIVER, EXPORTS, OBJECTS = "A driver", "An export type", "An object type"
COMMAND, PORT = "A QMP command", "A port of the engine"


class Row(NamedTuple):
    """A row of a recipe's table."""

    file: str
    has: str
    example: str


class Recipe(NamedTuple):
    """A recipe: its table, and all examples that it names."""

    rows: list[Row]
    examples: set[str]


def _recipes() -> dict[str, Recipe]:
    text = (TOP / "CONTRIBUTING.md").read_text()
    section = text.partition("\n## Recipes\n")[2].partition("\n## ")[0]
    found = {}
    for part in section.split("\n### ")[1:]:
        title, _, body = part.partition("\n")
        lines = [line.strip("|").split(" | ") for line in body.splitlines() if line[:3] == "| `"]
        rows = [Row(_path(file), has, _path(example)) for file, has, example in lines]
        examples = set(re.findall(r"`(tests/kinds/[\w/]+\.py)`", part))
        found[title] = Recipe(rows, examples)
    return found


def _path(cell: str) -> str:
    (path,) = re.findall(r"`([\w/]+\.(?:py|c|cdef\.h))`", cell)
    return str(path)


RECIPES = _recipes()


def _file_of(module: str) -> str:
    return module.replace(".", "/") + ".py"


def _parts(entry: Any) -> list[str]:
    """Return the modules of an entry's parts, as paths."""
    texts = [part for part in entry if isinstance(part, str)]
    events: dict[str, str] = getattr(entry, "events", {})
    found = [re.fullmatch(r"([\w.]+):\w+", part) for part in (*texts, *events.values())]
    return [_file_of(part[1]) for part in found if part is not None]


def _filled_in(recipe: Recipe, name: str) -> list[str]:
    """Return the files of a type with this name according to a recipe; the table is last."""
    return [row.file.replace("NAME", name.replace("-", "_")) for row in recipe.rows]


def _shared_files(title: str) -> list[str]:
    """Return patterns of files that types may share; drivers may have a folder."""
    options, made_of, _ = (row.file for row in RECIPES[title].rows)
    folder = r"\w+(/\w+)?" if title == DRIVER else r"\w+"
    return [options.replace("NAME", r"\w+"), made_of.replace("NAME", folder)]


def test_each_recipe_has_a_table() -> None:
    assert {DRIVER, EXPORTS, OBJECTS, COMMAND, PORT} == RECIPES.keys()
    for recipe in RECIPES.values():
        assert len(recipe.rows) >= 2


def test_the_examples_are_what_the_recipes_say_and_nothing_else() -> None:
    named = set().union(*(recipe.examples for recipe in RECIPES.values()))
    modules = {
        str(path.relative_to(TOP))
        for path in Path(__file__).parent.rglob("*.py")
        if path.name not in ("__init__.py", "conftest.py") and not path.name.startswith("test_")
    }
    assert named - {_file_of(__name__)} == modules


@pytest.mark.parametrize(
    ("title", "built_in", "entries"),
    [
        (DRIVER, DRIVERS, tables.DRIVERS),
        (EXPORTS, EXPORT_TYPES, tables.EXPORT_TYPES),
        (OBJECTS, OBJECT_TYPES, tables.OBJECT_TYPES),
    ],
    ids=["drivers", "exports", "objects"],
)
class TestTypes:
    """Types that are one entry of a table."""

    def test_built_in_types_have_the_files(
        self, title: str, built_in: dict[str, Any], entries: dict[str, Any]
    ) -> None:
        for name, entry in built_in.items():
            if title != EXPORTS:
                patterns = _shared_files(title) if entry.options else [".*"]
                for part in _parts(entry):
                    assert any(re.fullmatch(each, part) for each in patterns), part
            elif parts := _parts(entry):
                files = _filled_in(RECIPES[title], name)
                assert set(parts) <= set(files), name
                assert [file for file in files if not (TOP / file).exists()] == [], name

    def test_examples_have_the_files(
        self, title: str, built_in: dict[str, Any], entries: dict[str, Any]
    ) -> None:
        for name, entry in entries.items():
            assert type(entry) is type(next(iter(built_in.values()))), name
            assert set(_parts(entry)) <= RECIPES[title].examples, name

    def test_the_table_is_where_it_is_said_to_be(
        self, title: str, built_in: dict[str, Any], entries: dict[str, Any]
    ) -> None:
        *_, (file, has, example) = RECIPES[title].rows
        (name,) = re.findall(r"`([A-Z_]+)`", has)
        for path, table in ((file, built_in), (example, entries)):
            module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
            assert getattr(module, name) is table


def _structs(schema: Any) -> set[type[Any]]:
    """Return the structs that a type is made of, without their members."""
    if isinstance(schema, type) and issubclass(schema, QapiStruct):
        return {schema}
    return set().union(*(_structs(part) for part in get_args(schema)))


def test_commands_and_their_structs_are_where_the_recipe_says() -> None:
    load_all()
    schema, commands = (row.file.replace("AREA", r"\w+") for row in RECIPES[COMMAND].rows)
    for name, command in COMMANDS.items():
        assert re.fullmatch(commands, _file_of(command.handler.__module__)), name
        for struct in _structs(command.types()[0]) | _structs(command.types()[1]):
            assert re.fullmatch(schema, _file_of(struct.__module__)), struct


def test_the_example_of_a_command_is_where_the_recipe_says() -> None:
    schema, commands = ((TOP / row.example).read_text() for row in RECIPES[COMMAND].rows)
    (structs,) = re.findall(r"import (.*)\n", commands.partition(".schema ")[2])[:1]
    for struct in structs.split(", "):
        assert f"class {struct}(QapiStruct, " in schema
    assert "\n@command(" in commands


def test_ports_are_where_the_recipe_says() -> None:
    code, interface = (
        row.file.replace("KIND", "*").replace("NAME", "*") for row in RECIPES[PORT].rows
    )
    kinds = [path for path in TOP.glob(code) if _makes_ports(path)]
    assert kinds
    interfaces = set(TOP.glob(interface))
    for path in kinds:
        assert path.parent.name != "core"
        assert path.with_suffix(".cdef.h") in interfaces, path


def test_the_example_of_a_port_has_what_the_recipe_says() -> None:
    code, interface = (TOP / row.example for row in RECIPES[PORT].rows)
    assert _makes_ports(code)
    (made,) = re.findall(r"^struct vb_port \*(\w+)\(", interface.read_text(), re.MULTILINE)
    assert re.search(rf"^struct vb_port \*{made}\(", code.read_text(), re.MULTILINE)


def _makes_ports(path: Path) -> bool:
    text = path.read_text()
    return "static const struct vb_port_vtable " in text and "vb_port_init(" in text

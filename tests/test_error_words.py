# SPDX-License-Identifier: Apache-2.0
"""Errors are worded in one place, and told apart by their kind.

`vhostblk/errors.py` turns an errno or an `OSError` into its reason; `vhostblk/block/errors.py` has
the words for a missing node.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vhostblk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Finder = Callable[[ast.Module], Iterator[ast.AST]]

PACKAGE = Path(vhostblk.__file__).parent
MODULES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
}

#: What is said of a node that is not there.
_MISSING_NODE = re.compile(r"Cannot find device|Failed to find node|\b[Nn]ode '?.* not found")

#: Calls that make text of their arguments.
_WRITERS = {"str", "repr", "print", "debug", "info", "warning", "error", "exception", "log", "warn"}

#: Methods that look into a text.
_SEARCHES = {"startswith", "endswith", "find", "index", "count"}

#: Modules that write the text of exceptions that are neither ours nor failed system calls.
_OF_OTHERS = {
    "block/drivers/qcow2/compressed.py",  # zlib's and zstd's
    "jobs/job.py",  # a fault of ours, after its type
    "schema/plugins.py",  # of a plug-in's module
}


def reasons_made_by_hand(tree: ast.Module) -> Iterator[ast.AST]:
    """Find uses of `strerror`."""
    for node in ast.walk(tree):
        if getattr(node, "attr", None) == "strerror" or getattr(node, "value", None) == "strerror":
            yield node


def numbers_in_text(tree: ast.Module) -> Iterator[ast.AST]:
    """Find where what may be an OSError is written as it is, "[Errno 2]" and all."""
    for handler in _named_handlers(tree):
        if not re.search(r"\b(OSError|Exception|BaseException)\b", ast.unparse(handler.type)):
            continue
        for node in ast.walk(handler):
            written: list[Any] = []
            if isinstance(node, ast.FormattedValue):
                written = [node.value]
            elif isinstance(node, ast.Call) and _name(node.func) in _WRITERS:
                written = node.args
            if any(_name(value) == handler.name for value in written):
                yield node


def matches_on_text(tree: ast.Module) -> Iterator[ast.AST]:
    """Find where a handler decides by the text of its exception."""
    for handler in _named_handlers(tree):
        text = f"str({handler.name})"
        for node in ast.walk(handler):
            if isinstance(node, ast.Compare):
                if text in map(ast.unparse, (node.left, *node.comparators)):
                    yield node
            elif getattr(node, "attr", None) in _SEARCHES and ast.unparse(node).startswith(text):
                yield node


def words_for_missing_nodes(tree: ast.Module) -> Iterator[ast.AST]:
    """Find texts that say that there is no node of a name."""
    for node in ast.walk(tree):
        text = ""
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(getattr(part, "value", "")) for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        if _MISSING_NODE.search(text):
            yield node


def _named_handlers(tree: ast.Module) -> Iterator[Any]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.name is not None:
            yield node


def _name(node: ast.AST) -> str | None:
    return getattr(node, "attr", getattr(node, "id", None))


@pytest.mark.parametrize(
    ("finder", "allowed"),
    [
        (reasons_made_by_hand, {"errors.py"}),
        (numbers_in_text, _OF_OTHERS),
        (matches_on_text, set()),
        (words_for_missing_nodes, {"block/errors.py"}),
    ],
)
def test_words_are_in_their_place(finder: Finder, allowed: set[str]) -> None:
    lines = {name: [_line(node) for node in finder(tree)] for name, tree in MODULES.items()}
    found = {name: numbers for name, numbers in lines.items() if numbers}
    assert set(found) == allowed, found


def _line(node: Any) -> int:
    line: int = node.lineno
    return line


@pytest.mark.parametrize(
    ("finder", "source"),
    [
        (reasons_made_by_hand, "print(error.strerror)"),
        (reasons_made_by_hand, "os.strerror(5)"),
        (reasons_made_by_hand, "getattr(error, 'strerror', None)"),
        (numbers_in_text, "try: pass\nexcept OSError as error: raise Error(f'no: {error}')"),
        (numbers_in_text, "try: pass\nexcept (A, OSError) as error: log.error('no: %s', error)"),
        (numbers_in_text, "try: pass\nexcept Exception as error: text = str(error)"),
        (matches_on_text, "try: pass\nexcept A as error:\n if 'no' in str(error): pass"),
        (matches_on_text, "try: pass\nexcept A as error:\n if str(error).startswith('no'): pass"),
        (words_for_missing_nodes, "f\"Node '{name}' not found\""),
        (words_for_missing_nodes, "f\"Cannot find device='{name}' nor node-name=''\""),
    ],
)
def test_the_finders_find(finder: Finder, source: str) -> None:
    assert list(finder(ast.parse(source)))

# SPDX-License-Identifier: Apache-2.0
"""What the documents say of the source tree is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP = Path(__file__).parents[1]

#: A path has a folder, or the ending of a kind of file that this tree has.
_PATH = re.compile(r"`([\w.-]*/[\w./-]*|[\w-]+\.(?:py|c|h|md))`")
_CODE = re.compile(r"^```.*?^```|^ {4}.*?$", re.MULTILINE | re.DOTALL)


def named_paths(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the paths in a document, and whether they exist.

    A path is below the folder of the path before it, below the package, or below the tree's top.
    In recipes, words in capitals stand for others; `tests/kinds/test_recipes.py` looks at those.
    """
    folder = TOP
    for match in _PATH.finditer(_CODE.sub("", text)):
        name = match[1]
        if re.search(r"/[A-Z]+(/|\.)", name):
            continue
        found = [
            parent / name for parent in (folder, TOP / "vhostblk", TOP) if (parent / name).exists()
        ]
        if found:
            folder = found[0] if found[0].is_dir() else found[0].parent
        yield name, bool(found)


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_path_that_a_document_names_exists(document: str) -> None:
    paths = dict(named_paths((TOP / document).read_text()))
    assert len(paths) > 10
    assert [name for name, exists in paths.items() if not exists] == []


def test_a_path_that_does_not_exist_is_found() -> None:
    assert list(
        named_paths("`tests/conftest.py` with `descriptors.py`, and `vhostblk/gone.py`")
    ) == [
        ("tests/conftest.py", True),
        ("descriptors.py", True),
        ("vhostblk/gone.py", False),
    ]


def test_a_walk_names_each_room_once() -> None:
    text = (TOP / "ARCHITECTURE.md").read_text()
    walks = text.partition("## Four walks")[2].partition("\n## ")[0].split("\n### ")[1:]
    assert len(walks) == 4
    for walk in walks:
        paths = [match[1] for match in _PATH.finditer(walk)]
        assert len(paths) > 5
        assert len(paths) == len(set(paths)), walk.partition("\n")[0]

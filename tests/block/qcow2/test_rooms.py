# SPDX-License-Identifier: Apache-2.0
"""The modules of the qcow2 driver keep to themselves what is theirs."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

from vhostblk.block.drivers import qcow2

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES = {path.stem: ast.parse(path.read_text()) for path in Path(qcow2.__path__[0]).glob("*.py")}

#: The calls that move guest data.
TRANSFERS = {"preadv", "pwritev", "pwrite_zeroes", "pread_segments", "extent_map"}


def _assigned(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Yield the attributes that a module assigns."""
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            for each in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(each, ast.Attribute):
                    yield each


def test_nobody_sets_the_state_of_the_image_or_of_its_parts() -> None:
    """They are told what happened.

    The image itself joins its parts, and sets them up; a header has modules of its own.
    """
    of_image = [each for each in _assigned(MODULES["image"]) if ast.unparse(each.value) == "self"]
    owners = {"image", "_image", *(each.attr for each in of_image)}
    assert {"commit", "tables", "header"} < owners
    for module, tree in MODULES.items():
        if module in ("image", "header", "header_file"):
            continue
        for attribute in _assigned(tree):
            owner = ast.unparse(attribute.value).rpartition(".")[2]
            hook = attribute.attr.startswith("on_")
            assert hook or owner not in owners, f"{module}: {ast.unparse(attribute)}"


def test_guest_data_has_one_way() -> None:
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in TRANSFERS:
                owner = ast.unparse(node.value)
                assert not owner.endswith(".data"), f"{module}: {ast.unparse(node)}"


def test_tables_are_divided_in_one_place() -> None:
    """Only `tables` shifts by a slice's bits, and what does it for many clusters at once."""
    own = {"slice_bits", "span_bits"}
    for module, tree in MODULES.items():
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & own
        assert not used or module in ("tables", "write_fresh", "publish"), module

# SPDX-License-Identifier: Apache-2.0
"""Differences that are known, and are to go: random scripts go on in spite of them.

Each is something that vhostblk is to do as QEMU does. Where that is done, its entry goes.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.differential.declared import Rule


def _texts(change: Any) -> Any:
    """Make a function that changes all texts in an outcome."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without(member) for name, member in value.items()}
        if isinstance(value, list):
            return [without(item) for item in value]
        return change(value) if isinstance(value, str) else value

    return without


def _sorted_nodes(answer: Any) -> Any:
    """Sort the nodes of a list; the numbers of made-up names depend on their order."""
    if not isinstance(answer, dict) or not isinstance(answer.get("return"), list):
        return answer
    nodes = _texts(lambda text: re.sub(r"#block-\d+", "#block", text))(answer["return"])
    return {"return": sorted(nodes, key=lambda node: json.dumps(node, sort_keys=True))}


RULES: tuple[Rule, ...] = (
    Rule(
        "QEMU lists nodes of inline definitions in another order.",
        frozenset({"query-named-block-nodes"}),
        without=_sorted_nodes,
    ),
    Rule(
        "QEMU has no names for the block backends of exports.",
        without=_texts(
            lambda text: re.sub(r"block device 'e\d+'", "an unnamed block device", text)
        ),
    ),
)

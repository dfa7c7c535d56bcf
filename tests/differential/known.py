# SPDX-License-Identifier: Apache-2.0
"""Known differences that are to be fixed; random scripts continue after them.

In each case vhostblk should do as QEMU does. When one is fixed, remove its entry.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.differential.declared import Rule, answer, texts

#: Names of options, except those that hold a node's children.
_NO_CHILD = r"(?!file'|backing'|data-file'|image'|target'|log'|children)[a-z0-9.-]+"
_RAW_AT_0 = re.compile(
    r'json:\{"offset": 0, "driver": "raw", "file": \{"driver": "file", "filename": "([^"]*)"\}\}'
)
_PERMISSIONS = re.compile(
    r"are both required by (.*? child\)) and unshared by (.*? child\))", re.DOTALL
)


def _sorted_nodes(outcome: Any) -> Any:
    """Sort the nodes of a list, as the numbers in generated names depend on their order."""
    if not isinstance(outcome, dict) or not isinstance(outcome.get("return"), list):
        return outcome
    nodes = _without_numbers(outcome)["return"]
    return {"return": sorted(nodes, key=lambda node: json.dumps(node, sort_keys=True))}


_without_numbers = texts(lambda text: re.sub(r"#block-\d+", "#block", text))


def _any_parent_first(text: str) -> str:
    """Sort the two parents that a message about a permission conflict names."""
    return _PERMISSIONS.sub(lambda found: " ".join(sorted(found.groups())), text)


def _unnamed_backends(value: Any) -> Any:
    """Remove the names of exports' block backends."""
    if isinstance(value, dict):
        if value.get("type") == "block-backend":
            value = {**value, "name": ""}
        return {name: _unnamed_backends(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_unnamed_backends(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"block device '\w*'", "an unnamed block device", value)
    return value


def _without_job_errors(value: Any) -> Any:
    """Remove the messages of jobs that failed."""
    if isinstance(value, list):
        return [_without_job_errors(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: "failed" if name == "error" and "current-progress" in value
        else _without_job_errors(member)
        for name, member in value.items()
    }  # fmt: skip


def _sorted_graph(outcome: Any) -> Any:
    """Sort and renumber the nodes of a graph, as their numbers depend on their order."""
    if not isinstance(outcome, dict) or "return" not in outcome:
        return outcome
    graph = _without_numbers(outcome["return"])
    names = {node["id"]: f"{node['type']} {node['name']}" for node in graph["nodes"]}
    edges = [
        {**edge, "parent": names[edge["parent"]], "child": names[edge["child"]]}
        for edge in graph["edges"]
    ]
    for edge in edges:
        edge["perm"], edge["shared-perm"] = sorted(edge["perm"]), sorted(edge["shared-perm"])
    edges.sort(key=lambda edge: json.dumps(edge, sort_keys=True))
    return {"nodes": sorted(names.values()), "edges": edges}


def _without_unnamed_bitmaps(value: Any) -> Any:
    """Remove bitmaps without a name from a list of nodes."""
    if isinstance(value, list):
        return [_without_unnamed_bitmaps(item) for item in value]
    if not isinstance(value, dict):
        return value
    named = [each for each in value.get("dirty-bitmaps", ()) if "name" in each]
    rest = {name: item for name, item in value.items() if name != "dirty-bitmaps"}
    found = {name: _without_unnamed_bitmaps(item) for name, item in rest.items()}
    return {**found, "dirty-bitmaps": named} if named else found


def _without_reading(outcome: Any) -> Any:
    """Remove the permission to read from a graph."""
    if not isinstance(outcome, dict) or "edges" not in outcome:
        return outcome
    edges = [
        {**edge, "perm": [perm for perm in edge["perm"] if perm != "consistent-read"]}
        for edge in outcome["edges"]
    ]
    return {**outcome, "edges": sorted(edges, key=lambda edge: json.dumps(edge, sort_keys=True))}


def _both_refuse(ours: Any, theirs: Any) -> bool:
    return all(isinstance(outcome, dict) and "error" in outcome for outcome in (ours, theirs))


RULES: tuple[Rule, ...] = (
    Rule(
        "QEMU lists nodes of inline definitions in another order.",
        frozenset({"query-named-block-nodes"}),
        without=_sorted_nodes,
    ),
    Rule("QEMU has no names for the block backends of exports.", without=_unnamed_backends),
    Rule(
        "QEMU lists children in another order.",
        frozenset({"x-debug-query-block-graph"}),
        without=_sorted_graph,
    ),
    Rule(
        "QEMU's inactive nodes still have the permission to read their children.",
        frozenset({"x-debug-query-block-graph"}),
        without=_without_reading,
    ),
    Rule(
        "QEMU lists the internal bitmaps of copy-before-write.",
        frozenset({"query-named-block-nodes"}),
        without=_without_unnamed_bitmaps,
    ),
    Rule(
        "QEMU writes down the offset of a raw node if it was given, 0 too.",
        frozenset({"query-named-block-nodes"}),
        without=texts(lambda text: _RAW_AT_0.sub(r"\1", text)),
    ),
    Rule(
        "Jobs that fail in both, for another reason.",
        frozenset({"query-jobs"}),
        without=_without_job_errors,
    ),
    Rule("QEMU names the newest parent first.", without=texts(_any_parent_first)),
    Rule("Made-up names.", without=_without_numbers),
    answer(
        "blockdev-reopen",
        "return",
        rf"Option '{_NO_CHILD}' cannot be reset|Cannot change the option '{_NO_CHILD}'",
        "vhostblk accepts values of read-only options that QEMU refuses.",
    ),
    answer(
        "block-export-add",
        "is not a multiple of the logical block size",
        "return",
        "Sizes that are no multiple of 512.",
    ),
    Rule("Both refuse, in other words.", holds=_both_refuse),
)

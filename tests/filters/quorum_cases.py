# SPDX-License-Identifier: Apache-2.0
"""Cases about `quorum`, whose children fail by means of `blkdebug`."""

from __future__ import annotations

from typing import Any

from tests.filters.debug_cases import GRAPH, NODES, all_kinds, rule
from tests.filters.harness import (
    Case,
    Step,
    add,
    delete,
    export,
    file,
    flush,
    qmp,
    read,
    reopen,
    status,
    unexport,
    write,
    zero,
)

KIB = 1 << 10
SIZE = 256 * KIB
A, B, C = (bytes([0x11 * (n + 1)]) * SIZE for n in range(3))
SAME: dict[str, bytes | int] = dict.fromkeys("abc", A)
FILES = [add(**file(name, name, discard="unmap")) for name in "abc"]


def quorum(but: str = "", children: Any = "abc", threshold: int = 2, **members: Any) -> Step:
    """Add the node "q" on the files, or nodes with a letter as a name."""
    nodes = {"node_name": "q", "children": list(children), "vote_threshold": threshold}
    return add(but, driver="quorum", discard="unmap", **{**nodes, **members})


def failing(name: str, below: str, **members: Any) -> Step:
    """Add a node that fails by a rule."""
    rules = [rule("none", **members)]
    return add(driver="blkdebug", node_name=name, image=below, discard="unmap", inject_error=rules)


def change(parent: str = "q", but: str = "", **members: str) -> Step:
    return qmp("x-blockdev-change", {"parent": parent, **members}, but=but)


def on_quorum(name: str, files: dict[str, bytes | int], *steps: Step, **members: Any) -> Case:
    """Add "q" on three files, and do the steps on the export "e"."""
    before = [*FILES, quorum(**members), export("e", "q")]
    return Case(name, files, [*before, *steps, unexport("e")])


def with_failures(name: str, *broken: Step, **members: Any) -> Case:
    """Do one request of each kind, with children that fail."""
    steps = [*FILES, *broken, quorum(**members), export("e", "q"), *all_kinds("e"), unexport("e")]
    return Case(name, SAME, steps)


READS = [read("e", 0, 4 * KIB), read("e", 9 * 512, 512), status("e", 0, 8 * KIB), flush("e")]
WRITES = [write("e", 0, 4 * KIB, 0x77), zero("e", 8 * KIB, KIB), read("e", 0, 16 * KIB)]

OPENING = Case(
    "quorum-opening",
    {**SAME, "short": 4096},
    [
        *FILES,
        add(**file("s", "short")),
        quorum(children=""),
        quorum(threshold=0),
        quorum(threshold=-1),
        quorum(threshold=4),
        quorum(blkverify=True),
        quorum(children="ab", blkverify=True, rewrite_corrupted=True),
        quorum(children="ab", read_pattern="x"),
        quorum(children=["a", "x"]),
        quorum(children="as"),
        quorum(children=["a", {"driver": "file"}]),
        quorum(),
        NODES,
        GRAPH,
        reopen({"driver": "quorum", "node-name": "q", "children": ["a"], "vote-threshold": 2}),
        delete("a"),
        add(driver="raw", node_name="r", file="a", size=512),
        qmp("block_resize", {"node-name": "q", "size": SIZE * 2}),
        delete("q"),
        delete("r"),
        quorum(read_only=True, rewrite_corrupted=True, read_pattern="fifo", blkverify=True),
        NODES,
        delete("q"),
        quorum(read_only=True, rewrite_corrupted=True),
        GRAPH,
        delete("q"),
        quorum(children="ab", blkverify=True),
        NODES,
        change(node="c"),
        change(child="children.0"),
        change(child="children.2"),
    ],
)

#: Exports differ in what they share.
GRAPH_ALONE = [unexport("e"), GRAPH, export("e", "q")]

CHANGES = Case(
    "quorum-changes",
    {**SAME, "d": A},
    [
        *FILES,
        add(**file("d", "d")),
        quorum(children="ab", threshold=2),
        export("e", "q"),
        change(child="children.1"),
        change(child="children.5"),
        change(node="a"),
        change(node="x"),
        change(node="q"),
        change(parent="x", node="c"),
        change(parent="a", node="c"),
        change(parent="a", child="children.0"),
        change(),
        change(child="children.1", node="c"),
        change(node="c"),
        *GRAPH_ALONE,
        write("e", 0, 4 * KIB, 0x66),
        change(child="children.0"),
        *GRAPH_ALONE,
        write("e", 4 * KIB, 4 * KIB, 0x67),
        read("e", 0, 8 * KIB),
        change(node="d"),
        read("e", 0, 16 * KIB),
        *GRAPH_ALONE,
        change(child="children.2"),
        change(node="a"),
        read("e", 0, 16 * KIB),
        NODES,
        change(child="children.3"),
        unexport("e"),
        delete("a"),
    ],
)

CASES = [
    OPENING,
    CHANGES,
    on_quorum("quorum-agreed", SAME, *READS, *all_kinds("e"), *WRITES, *READS),
    on_quorum("quorum-one-of-three", {**SAME, "b": B}, *READS, *WRITES, *READS),
    on_quorum("quorum-three-of-three", {"a": A, "b": B, "c": C}, *READS, *WRITES),
    on_quorum("quorum-any", {"a": A, "b": B, "c": C}, *READS, *WRITES, threshold=1),
    on_quorum("quorum-all", {**SAME, "c": C}, *READS, *WRITES, *READS, threshold=3),
    on_quorum("quorum-rewrite", {**SAME, "b": B}, *READS, *READS, rewrite_corrupted=True),
    on_quorum("quorum-fifo", {**SAME, "a": B}, *READS, *WRITES, *READS, read_pattern="fifo"),
    with_failures("quorum-one-fails", failing("x", "b", errno=28), children="axc"),
    with_failures(
        "quorum-two-fail",
        failing("x", "b", errno=28),
        failing("y", "c", errno=12),
        children="axy",
    ),
    with_failures(
        "quorum-fifo-fails",
        failing("x", "b", errno=28),
        failing("y", "c", errno=12, sector=4),
        children="xya",
        read_pattern="fifo",
        threshold=1,
    ),
    *(
        with_failures(
            f"quorum-{kind}-fails",
            failing("x", "b", errno=28, iotype=kind),
            failing("y", "c", errno=12, iotype=kind),
            children="axy",
        )
        for kind in ("write", "write-zeroes", "flush")
    ),
    with_failures(
        "quorum-status-fails", failing("x", "b", errno=28, iotype="block-status"), children="axc"
    ),
    with_failures(
        "quorum-rewrite-fails",
        failing("x", "b", errno=28, iotype="read"),
        children="axc",
        rewrite_corrupted=True,
    ),
]

# SPDX-License-Identifier: Apache-2.0
"""Random scripts: a seed gives the same script, the state is tracked, failing ones are shrunk."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.differential import declared, known
from tests.differential.generator import Generator, qmp
from tests.differential.random_scripts import play, run_seed, search
from tests.differential.script import parse
from tests.differential.shrink import shrink
from tests.differential.values import Values
from tests.differential.world import World
from tests.qmp_exports.daemons import QEMU_10, VHOSTBLK
from vhostblk.schema.block import BlockdevReopen
from vhostblk.schema.convert import from_json
from vhostblk.schema.errors import OptionError

if TYPE_CHECKING:
    from pathlib import Path


def written(seed: int, count: int = 200) -> list[str]:
    """Write a script without running it: each command succeeds, with an empty result."""
    generator = Generator(seed)
    lines = list(generator.begin())
    for _ in range(count):
        for line in generator.go_on():
            lines.append(line)
            generator.learn(line, {"return": {}})
    return lines + list(generator.end())


def test_a_seed_makes_one_script_that_can_be_parsed() -> None:
    assert written(1) == written(1) != written(2)
    for seed in range(20):
        parse("\n".join(written(seed)))


def test_scripts_have_everything_in_them() -> None:
    commands = {
        step.command for seed in range(30) for step in parse("\n".join(written(seed))).steps
    }
    wanted = {
        *("blockdev-add", "blockdev-reopen", "blockdev-del", "block_resize", "x-blockdev-change"),
        *("block-export-add", "block-export-del", "transaction", "blockdev-set-active"),
        *("blockdev-snapshot", "blockdev-snapshot-sync", "blockdev-snapshot-internal-sync"),
        *("block-dirty-bitmap-add", "block-dirty-bitmap-merge", "blockdev-create"),
        *("change-backing-file", "object-add", "io", "quit", "$"),
    }
    assert not wanted - commands


def test_values_are_of_the_schema() -> None:
    """All values are accepted, except numbers that are out of range."""
    values = Values(random.Random(3), World(files={"a": "raw"}))
    refused = []
    for _ in range(100):
        driver = values.choose("file", "qcow2", "raw", "throttle", "copy-before-write", "quorum")
        try:
            from_json(BlockdevReopen, {"options": [values.node(driver)]})
        except OptionError as error:
            refused.append(str(error))
    assert len(refused) < 20
    assert all(re.search(r"range|expects u?int", text) for text in refused), refused


def test_the_world_learns_from_answers() -> None:
    world = World(files={"a.qcow2": "qcow2", "b.raw": "raw"})
    file = {"driver": "file", "node-name": "f", "filename": "a.qcow2"}
    raw = {"driver": "raw", "node-name": "r", "file": "f"}
    disk = {"driver": "qcow2", "node-name": "d", "file": {**file, "node-name": "g"}}
    other = {"driver": "raw", "node-name": "o", "file": {"driver": "file", "filename": "b.raw"}}
    for definition in (file, raw, disk, other):
        world.learn("blockdev-add", definition, {"return": {}})
    world.learn("blockdev-add", {**file, "node-name": "x"}, {"error": {}})
    assert set(world.definitions) == {"f", "r", "d", "g", "o"}
    assert [world.is_opaque(name) for name in "frdgo"] == [True, True, False, True, False]
    world.learn("block-export-add", {"id": "e", "node-name": "r"}, {"return": {}})
    world.learn("block-export-add", {"id": "h", "node-name": "d"}, {"return": {}})
    assert world.comparable_exports() == ["h"]
    image = {"virtual-size": 512, "snapshots": [{"name": "s"}]}
    node = {"node-name": "d", "drv": "qcow2", "ro": False, "image": image}
    world.learn("query-named-block-nodes", {}, {"return": [node]})
    assert set(world.definitions) == {"d"}
    assert world.nodes["d"].snapshots == ["s"]


def test_the_smallest_script_is_found() -> None:
    """The difference needs the second export, its node, one member and one request."""
    lines = [
        *("$ one", "$ two", "$ three"),
        qmp("add", {"id": "a", "deep": {"bad": 1, "good": 2}, "list": [1, 2]}),
        "io e.sock read 0 512; write 0 512 1; flush",
        "$ four",
    ]

    def differs(candidate: list[str]) -> bool:
        text = "\n".join(candidate)
        return "two" in text and '"bad"' in text and "write" in text

    assert shrink(lines, differs) == [
        "$ two",
        qmp("add", {"deep": {"bad": 1}}),
        "io e.sock write 0 512 1",
    ]


def test_shrinking_has_an_end() -> None:
    runs = 0

    def differs(candidate: list[str]) -> bool:
        nonlocal runs
        runs += 1
        return len(candidate) == 1000

    shrink([f"$ {number}" for number in range(1000)], differs, budget=10)
    assert runs == 10


def test_a_difference_is_kept_as_a_script_that_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Generator, "begin", lambda _self: iter(["$ true", "$ basename $(dirname $PWD)", "$ true"])
    )
    assert search(VHOSTBLK, 7, 0.001, tmp_path) == 1
    said = capsys.readouterr().out
    assert "seed 7: $ basename" in said
    assert "1 scripts, 0 cut short, 1 kinds of differences; next: --seed 8" in said
    lines = (tmp_path / "seed-7.script").read_text().splitlines()
    assert lines[-1] == "$ basename $(dirname $PWD)"
    assert all(line.startswith("#") for line in lines[:-1])


def test_what_is_known_is_no_finding_and_may_cut_a_script(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = ["$ basename $(dirname $PWD)", "$ true"]
    rule = declared.answer("$", "^ours", "^theirs", "they are two", cuts=True)
    monkeypatch.setattr(known, "RULES", (rule,))
    peer = replace(VHOSTBLK, version=10)
    result = play(lines, peer)
    assert result.finding is None
    assert (result.cut, result.lines) == ("they are two", lines[:1])
    monkeypatch.setattr(known, "RULES", (declared.answer("$", "^ours", "^theirs", "two"),))
    assert play(lines, peer).lines == lines


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        ("both required by a child) and unshared by b child).", "both required by", ""),
        (
            "are both required by node 'a' (x child) and unshared by node 'b' (y child)",
            "are both required by node 'b' (y child) and unshared by node 'a' (x child)",
            "QEMU names the newest parent first.",
        ),
        (
            'Failed to get "write" lock. Is another process using the image [a]?',
            'Failed to get "write" lock',
            "Messages about image locks name the image.",
        ),
    ],
)
def test_rules_take_out_what_they_explain(ours: str, theirs: str, reason: str) -> None:
    rules = [rule for rule in (*declared.RULES, *known.RULES) if rule.holds is None]
    outcomes = ({"error": {"desc": text}} for text in (ours, theirs))
    why = declared.expected(rules, 10, "blockdev-add", *outcomes)
    assert (why.reason if why else "") == reason


def test_graphs_and_lists_of_nodes_are_compared_whatever_their_order() -> None:
    node = {"node-name": "#block-1", "drv": "file", "image": {"virtual-size": 5}}
    other = {"node-name": "n", "drv": "qcow2", "image": {"virtual-size": 7}}
    lists = [{"return": [node, other]}, {"return": [other, {**node, "node-name": "#block-2"}]}]
    bigger = {"return": [node, {**other, "image": {"virtual-size": 8}}]}
    rules = (*declared.RULES, *known.RULES)
    command = "query-named-block-nodes"
    assert declared.expected(rules, 10, command, *lists) is not None
    assert declared.expected(rules, 10, command, lists[0], bigger) is None

    def graph(first: str, second: str) -> dict[str, Any]:
        ids = {first: 1, second: 2}
        nodes = [{"id": ids[name], "name": name, "type": "node"} for name in (first, second)]
        edge = {"perm": ["write", "resize"], "shared-perm": [], "name": "file"}
        ends = {"parent": ids["a"], "child": ids["b"]}
        return {"return": {"nodes": nodes, "edges": [{**edge, **ends}]}}

    command = "x-debug-query-block-graph"
    assert declared.expected(rules, 10, command, graph("a", "b"), graph("b", "a")) is not None
    other_edge = json.loads(json.dumps(graph("a", "b")).replace("write", "read"))
    assert declared.expected(rules, 10, command, graph("a", "b"), other_edge) is None


@pytest.mark.skipif(not QEMU_10.available, reason="qemu-storage-daemon 10 missing")
@pytest.mark.parametrize("seed", [2, 6])
def test_random_scripts_on_both(seed: int) -> None:
    """Run a few; `make soak` runs others for hours."""
    result = run_seed(seed, QEMU_10)
    assert result.finding is None, result.finding
    assert len(result.lines) > 4

# SPDX-License-Identifier: Apache-2.0
"""All mutations apply to the present code, and the runner reports whether tests notice them."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

from fuzz.mutations import run
from fuzz.mutations.changes import all_mutations
from fuzz.mutations.mutation import Mutation, MutationError

if TYPE_CHECKING:
    from pathlib import Path

TEXT = textwrap.dedent(
    """\
    def f():
        if a:
            return 1
        return 2

    def g():
        return 2
    """
)


def mutation(change: str, *tests: str) -> Mutation:
    return Mutation("m", "fuzz/harness.py", change, "why", tests)


def test_all_of_them_apply() -> None:
    """Rewrite those that don't, for the present code."""
    assert list(run.check(all_mutations())) == []


def test_there_are_many() -> None:
    assert sum(not each.equivalent for each in all_mutations()) >= 80


def test_lines_are_replaced_wherever_they_are_indented() -> None:
    change = """
              if a:
        -         return 1
        +         return 3
        +         # and more
        """
    changed = mutation(change).apply(TEXT)
    assert changed == TEXT.replace("        return 1", "        return 3\n        # and more")


def test_several_places_change_together() -> None:
    change = """
        - def f():
        + def h():
        ...
        - def g():
        + def f():
        """
    assert "def h():" in mutation(change).apply(TEXT)
    assert "def g():" not in mutation(change).apply(TEXT)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("- return 2\n+ return 3", "2 places"),
        ("- return 9\n+ return 3", "0 places"),
        ("+ return 1", "replaces nothing"),
        ("* return 1", "begins with"),
    ],
)
def test_a_change_that_does_not_apply_is_found(change: str, reason: str) -> None:
    with pytest.raises(MutationError, match=reason):
        mutation(change).apply(TEXT)


def test_tests_that_are_not_there_are_found() -> None:
    change = "- PATIENCE = 60\n+ PATIENCE = 61"
    assert (
        list(run.check([mutation(change, "tests/fuzz/test_mutations.py::test_there_are_many")]))
        == []
    )
    for test in ("tests/fuzz/nothing.py", "tests/fuzz/test_mutations.py::nothing"):
        assert list(run.check([mutation(change, test)])) == [f"m: no such test: {test}"]
    assert list(run.check([mutation(change)])) == ["m: no tests"]


def test_what_is_noticed_and_what_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One of each, in Python and in C; a mutation that was noticed is not run again."""
    tests = ("tests/engine/test_extents.py::test_null_map",)
    mutations = [
        Mutation(
            "comment",
            "vhostblk/engine/src/core/extent.c",
            "- #define ENTRY_FLAGS 511ull\n+ #define ENTRY_FLAGS 511ull /* the low bits */",
            "",
            tests,
        ),
        Mutation(
            "compiled",
            "vhostblk/engine/src/core/extent.c",
            """
              case VB_EXTENT_NULL:
            -     return !write && map->flags & VB_EXTENT_READ_ZEROES ? VB_GO_ZERO : VB_GO_NULL;
            +     return VB_GO_NULL;
            """,
            "",
            tests,
        ),
        Mutation(
            "interpreted",
            "tests/engine/test_extents.py",
            """
            - def test_null_map() -> None:
            + def test_null_map(missing: int) -> None:
            """,
            "",
            tests,
        ),
    ]
    monkeypatch.setattr(run, "all_mutations", lambda: mutations)
    record = tmp_path / "record"
    for again in (False, True):
        assert run.main(["--resume", str(record)]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert f"{1 if again else 3} mutations, {2 if again else 0} done before, seed 1" in lines
        assert lines[-1] == "look at: comment"

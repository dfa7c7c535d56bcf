# SPDX-License-Identifier: Apache-2.0
"""The format of scripts."""

from __future__ import annotations

import pytest

from tests.differential.script import (
    Control,
    Io,
    Qmp,
    Request,
    ScriptError,
    Shell,
    Wait,
    number,
    parse,
)

EVERYTHING = """
# a comment

$ echo 1 |
   cat
start --object iothread,id=io
> {"execute": "quit",
   "id": 1}
but IOTHREAD_IN_USE
wait JOB_STATUS_CHANGE {"id": "j"}
io e.sock write 0 64k 0xaa; read 1M 0x200; zero 0 1 unmap; discard 0 1; flush; id
ordered
io e.sock cache off
kill
but SAFE_WITH_CLIENT events
"""


def test_every_kind_of_line() -> None:
    script = parse(EVERYTHING)
    assert [step.action for step in script.steps] == [
        Shell("echo 1 | cat"),
        Control("start", "--object iothread,id=io"),
        Qmp('{"execute": "quit", "id": 1}'),
        Wait("JOB_STATUS_CHANGE", {"id": "j"}),
        Io(
            "e.sock",
            (
                Request("write", 0, 65536, 0xAA),
                Request("read", 1 << 20, 512),
                Request("zero", 0, 1, unmap=True),
                Request("discard", 0, 1),
                Request("flush"),
                Request("id"),
            ),
        ),
        Io("e.sock", (Request("cache", on=False),)),
        Control("kill"),
    ]
    assert [step.number for step in script.steps] == [4, 6, 7, 10, 11, 13, 14]
    assert [step.but for step in script.steps] == ["", "", "", "IOTHREAD_IN_USE", "", "", ""]
    assert [step.ordered for step in script.steps] == [False] * 5 + [True] * 2
    assert script.but_events == "SAFE_WITH_CLIENT"
    assert script.steps[2].command == "quit"
    assert script.steps[4].command == "io"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("bogus line", "s:1: not a line of a script: bogus line"),
        ("$ true\nio e.sock bogus 1", "s:2: not a request: 'bogus 1'"),
        ("io e.sock read 0", "not a request"),
        ("io e.sock read 0 x", "'x' is not a number"),
        ("io e.sock write 0 1 256", "'256' is more than a byte"),
        ("io e.sock dump; flush", "are alone in a line"),
        ("io e.sock connect 1", "not a request"),
        ("wait EVENT {", "Expecting property name"),
        ("but", "want: but NAME"),
        ("but X Y", "want: but NAME"),
        ("but X", "nothing comes after: but X"),
        ("  more", "line 1 continues nothing"),
    ],
)
def test_mistakes_are_told_with_their_line(text: str, problem: str) -> None:
    with pytest.raises(ScriptError) as caught:
        parse(text, "s")
    assert problem in str(caught.value)


def test_numbers() -> None:
    assert [number(text) for text in ("0", "512", "64k", "0x10", "1M", "2g")] == [
        *(0, 512, 65536, 16, 1 << 20, 2 << 30)
    ]


def test_a_line_that_is_no_command_has_no_name() -> None:
    assert parse("> no JSON\n> [1]\n> {}").steps[0].command == ""

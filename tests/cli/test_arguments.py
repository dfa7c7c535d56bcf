# SPDX-License-Identifier: Apache-2.0
"""Splitting the command line."""

from __future__ import annotations

import pytest

from vhostblk.cli.arguments import Step, parse
from vhostblk.cli.errors import UsageError


def test_steps_keep_their_order() -> None:
    arguments = parse(["--export", "a", "--blockdev=b", "--object", "c", "--pidfile", "p"])
    assert arguments.steps == [
        Step("export", "a", "--export a"),
        Step("blockdev", "b", "--blockdev=b"),
        Step("object", "c", "--object c"),
    ]
    assert arguments.pidfile == "p"


def test_long_options_may_be_abbreviated() -> None:
    arguments = parse(["--block", "a", "--e=b", "--daemon"])
    assert [step.option for step in arguments.steps] == ["blockdev", "export"]
    assert arguments.daemonize


def test_own_options_leave_abbreviations_of_qemus_alone() -> None:
    for own in ("--run-as", "--sandbox"):
        for end in range(3, len(own) + 1):
            parse([own[:end], "x"])
    assert parse(["--sandbox=off"]).sandbox == Step("sandbox", "off", "--sandbox=off")


def test_an_argument_may_look_like_an_option() -> None:
    assert parse(["--blockdev", "--export"]).steps[0].value == "--export"


@pytest.mark.parametrize(
    "words", [["--addr.type=fd,addr.str=3", "i"], ["i", "--addr.type=fd,addr.str=3"]]
)
def test_short_form(words: list[str]) -> None:
    arguments = parse(words)
    assert arguments.image == "i"
    assert arguments.address == Step("addr", "addr.type=fd,addr.str=3", "--addr.type=fd,addr.str=3")


def test_an_image_may_look_like_an_option_after_two_dashes() -> None:
    assert parse(["--addr.type=x", "--", "--help"]).image == "--help"


@pytest.mark.parametrize(
    ("words", "show"),
    [(["-h"], "help"), (["--help"], "help"), (["-V"], "version"), (["-hV", "--bogus"], "help")],
)
def test_show(words: list[str], show: str) -> None:
    assert parse(words).show == show


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--bogus"], "unrecognized option '--bogus'"),
        (["--bogus=1"], "unrecognized option '--bogus'"),
        (["-x"], "invalid option -- 'x'"),
        (["--blockdev"], "option '--blockdev' requires an argument"),
        (["-T"], "option requires an argument -- 'T'"),
        (["--daemonize=1"], "option '--daemonize' doesn't allow an argument"),
        (["--nbd-server", "c"], "--nbd-server c: --nbd-server is not available in vhostblk yet"),
        (["a", "b"], "b: Unexpected argument"),
        (["--addr.a=1", "--addr.b=1"], "--addr.b=1: there is already --addr.a=1; use --export"),
        (["--addr.a=1"], "--addr.a=1: no image named and no --blockdev given"),
        (
            ["a"],
            (
                "a: nothing says where to listen: add --addr.type=unix,addr.path=<socket-path> or "
                "--addr.type=fd,addr.str=<fd>"
            ),
        ),
    ],
)
def test_refused(words: list[str], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert str(caught.value) == reason


def test_ambiguous_abbreviation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parse.__globals__["OPTIONS"], "blocks", True)
    with pytest.raises(UsageError, match="'--bl' is ambiguous; possibilities: '--blockdev' '--bl"):
        parse(["--bl", "x"])

# SPDX-License-Identifier: Apache-2.0
"""Tests of the runner: equal and different outcomes, and its messages."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.differential import declared
from tests.differential.__main__ import main
from tests.differential.comparison import findings
from tests.differential.differences import Difference
from tests.differential.normal import Normalizer
from tests.differential.script import parse
from tests.qmp_exports.daemons import VHOSTBLK

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

ADD = '> {"execute": "blockdev-add", "arguments": {"driver": "null-co", "node-name": "n"}}\n'
#: Two runs of the same program differ only in their directories.
WHO = "basename $(dirname $PWD)"


def test_a_daemon_is_like_itself() -> None:
    text = """
start --blockdev null-co,node-name=n,size=1048576,read-zeroes=on
   --export vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=e.sock,writable=on
> {"execute": "query-named-block-nodes"}
io e.sock dump
io e.sock write 0 4k 1; read 8k 4k
> {"execute": "block-export-del", "arguments": {"id": "e", "mode": "hard"}}
wait BLOCK_EXPORT_DELETED {"id": "e"}
io e.sock flush
ordered
> {"execute": "quit"}
exit
"""
    assert findings(parse(text), VHOSTBLK) == []


def test_shell_lines_see_the_directory_and_what_differs_is_shown() -> None:
    (found,) = findings(parse(f"$ touch here; ls\n$ {WHO}", "s"), VHOSTBLK)
    assert found.where == f"s:2: $ {WHO}"
    assert "-theirs\n  +ours" in str(found)


def test_answers_and_events_differ() -> None:
    """Each side has a file with its own name only."""
    text = f"""
$ touch $({WHO})
> {{"execute": "blockdev-add",
   "arguments": {{"driver": "file", "node-name": "f", "filename": "{{dir}}/ours"}}}}
> {{"execute": "blockdev-create", "arguments": {{"job-id": "j",
   "options": {{"driver": "qcow2", "file": "f", "size": 65536}}}}}}
wait JOB_STATUS_CHANGE {{"id": "j", "status": "concluded"}}
"""
    add, events = findings(parse(text), VHOSTBLK)
    assert add.ours == {"return": {}}
    assert "Could not open '{dir}/ours'" in add.theirs["error"]["desc"]
    statuses = [
        [data["status"] for data in side["JOB_STATUS_CHANGE j"]]
        for side in (events.ours, events.theirs)
    ]
    assert "pending" in statuses[0]
    assert "aborting" in statuses[1]


def test_a_declared_difference_has_to_show_and_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    holding = Difference("they are two", holds=lambda ours, theirs: ours[0] == "ours")
    other = Difference("they are one", holds=lambda ours, theirs: ours[0] == "theirs")
    monkeypatch.setattr(declared, "HOLDING", holding, raising=False)
    monkeypatch.setattr(declared, "OTHER", other, raising=False)
    program = replace(VHOSTBLK, version=10)
    assert findings(parse(f"but HOLDING\n$ {WHO}"), program) == []
    (found,) = findings(parse(f"but OTHER\n$ {WHO}"), program)
    assert found.problem == "another difference than: they are one"
    (found,) = findings(parse("but HOLDING\n$ true"), program)
    assert found.problem == "no difference any more: they are two"


def test_the_end_of_a_daemon_is_an_outcome() -> None:
    """A command after the daemon has ended has an outcome, too."""
    text = f"""{ADD}> {{"execute": "quit"}}
exit
> {{"execute": "query-version"}}
kill
kill
$ [ $({WHO}) = theirs ] || chmod 0 .
"""
    assert findings(parse(text), VHOSTBLK) == []


def test_status_and_words_of_the_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, broken = (tmp_path / name for name in ("good", "bad", "broken"))
    good.write_text("$ true\n")
    bad.write_text(f"$ {WHO}\n")
    broken.write_text("nonsense\n")
    peer = ("--peer", "vhostblk")
    assert main([*peer, str(good)]) == 0
    assert capsys.readouterr().out == f"the same: {good}\n"
    assert main([*peer, str(good), str(bad)]) == 1
    assert f"DIFFERENT: {bad}\n" in capsys.readouterr().out
    assert main([*peer, str(broken)]) == 2
    assert capsys.readouterr().err == f"{broken}:1: not a line of a script: nonsense\n"
    assert main([*peer, str(tmp_path / "nothing")]) == 2
    assert main([*peer, "--show", str(good)]) == 0
    assert capsys.readouterr().out.startswith("$ true\n    status 0\n")


def test_what_depends_on_time_and_place_is_taken_out(tmp_path: Path) -> None:
    normal = Normalizer(tmp_path)
    answer = {"node-name": "#block123", "child": "#block045", "filename": f"json:{tmp_path}/a"}
    assert normal.json([answer, "#block123"]) == [
        {"node-name": "#block-1", "child": "#block-2", "filename": "json:{dir}/a"},
        "#block-1",
    ]
    assert normal.text("vhostblk: x (pid 12)\n/a/qemu-storage-daemon: y") == (
        "daemon: x (pid)\ndaemon: y"
    )
    assert normal.text("1 s 0 B 2025-01-02 03:04:05  12:34:56.789 --") == "1 s 0 B DATE --"
    assert json.loads(normal.text('{"actual-size": 4096}')) == {"actual-size": "#"}

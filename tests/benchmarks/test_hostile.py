# SPDX-License-Identifier: Apache-2.0
"""The benchmark beside misbehaving peers, for a moment: what it says is for people to judge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import hostile, hostile_peers

if TYPE_CHECKING:
    import pytest


def test_a_table_of_what_misbehaves(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--lane", "python", "--seconds", "0.02", "--rounds", "1"]
    assert hostile.main([*arguments, "--peer", "junk", "--peer", "truncating"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split()[:2] for row in rows] == [
        ["python", "junk"],
        ["python", "truncating"],
    ]


def test_a_peer_that_fails_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(hostile_peers.PEERS, "nonesuch", hostile_peers.PEERS["nobody"])
    assert hostile.main(["--lane", "python", "--seconds", "0.02", "--peer", "nonesuch"]) == 1
    assert "nonesuch does not misbehave" in capsys.readouterr().err

# SPDX-License-Identifier: Apache-2.0
"""The start-up benchmark measures both images."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from benchmarks.daemons import ROOT
from benchmarks.startup import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_the_table_has_times_and_modules_of_each_tree(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--no-qemu", "--rounds", "1", "--tree", str(ROOT)])
    heading, _, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[-7:] == ["qcow2", "qcow2", "by", "raw", "modules", "of", "vhostblk"]
    names, counts = set(), set()
    for row in rows:
        name, raw, qcow2, cpu_raw, cpu_qcow2, ratio, modules, of_vhostblk = row.split()
        names.add(name)
        counts.add((modules, of_vhostblk))
        assert int(raw) > 0
        assert int(qcow2) > 0
        assert int(cpu_raw) > 0
        assert int(cpu_qcow2) > 0
        assert float(ratio) > 0
        assert int(modules) > int(of_vhostblk) > 10
    assert names == {"vhostblk", f"{ROOT.name}:1"}
    assert len(counts) == 1


def test_another_tree_without_vhostblk_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--no-qemu", "--tree", str(tmp_path)]) == 1
    assert "not a source tree of vhostblk" in capsys.readouterr().err


def test_a_missing_peer_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--qemu", str(tmp_path / "nothing")]) == 1
    assert "not a program" in capsys.readouterr().err

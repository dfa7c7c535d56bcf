# SPDX-License-Identifier: Apache-2.0
"""The start-up benchmark measures both images."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from benchmarks.startup import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_the_table_has_times_and_their_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--no-qemu", "--rounds", "1"])
    heading, _, row = capsys.readouterr().out.splitlines()
    assert heading.split()[-4:] == ["qcow2", "qcow2", "by", "raw"]
    name, raw, qcow2, ratio = row.split()
    assert name == "vhostblk"
    assert int(raw) > 0
    assert int(qcow2) > 0
    assert float(ratio) > 0


def test_a_missing_peer_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--qemu", str(tmp_path / "nothing")]) == 1
    assert "not a program" in capsys.readouterr().err

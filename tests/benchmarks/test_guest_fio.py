# SPDX-License-Identifier: Apache-2.0
"""fio in a guest: one short run."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from benchmarks.guest_fio import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed")
def test_short_comparison_in_a_guest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "fio.json"
    arguments = ["--case", "null-read", "--depth", "4", "--seconds", "1", "--rounds", "1"]
    assert main([*arguments, "--output", str(output)]) == 0
    assert "null-read" in capsys.readouterr().out
    (row,) = json.loads(output.read_text())["rows"]
    assert all(samples["iops"][0] > 0 for samples in row["samples"].values())

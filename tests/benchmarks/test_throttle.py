# SPDX-License-Identifier: Apache-2.0
"""The benchmark of throttle groups: one short run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import throttle
from benchmarks.throttle import Scenario, main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_short_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "SCENARIOS", (Scenario("iops-total", 1000, (4, 2)),))
    monkeypatch.setattr(throttle, "DEPTHS", (4,))
    arguments = ["--no-qemu", "--seconds", "0.5", "--rounds", "1", "--round-seconds", "0.1"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # No more than the limit, and what goes at once: 120 % of half a second.
    assert lines[4].split()[:3] == ["iops-total=1,000", "all", "6"]
    assert all(0 < float(share) < 125 for share in lines[4].split()[3:])
    assert (tmp_path / "throttle.svg").exists()

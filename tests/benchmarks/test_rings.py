# SPDX-License-Identifier: Apache-2.0
"""The comparison of rings: its daemons and its statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.daemons import Disk, running, vhostblk_backend
from benchmarks.rings import median_interval

if TYPE_CHECKING:
    from pathlib import Path


def test_the_daemon_is_not_that_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "vhostblk"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("raise SystemExit('another one')\n")
    monkeypatch.chdir(tmp_path)
    with running(vhostblk_backend(), Disk("null-co", ("size=1048576",)), tmp_path) as daemon:
        daemon.require_alive()


@pytest.mark.parametrize(
    ("count", "low", "high"), [(1, 0, 0), (2, 0, 1), (25, 7, 17), (100, 40, 59)]
)
def test_the_interval_of_a_median_narrows_with_the_number_of_rounds(
    count: int, low: int, high: int
) -> None:
    assert median_interval(range(count)[::-1]) == (low, high)

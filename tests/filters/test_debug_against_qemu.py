# SPDX-License-Identifier: Apache-2.0
"""Drivers for testing: the same outcomes as those of QEMU's storage daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.filters import debug_cases, log_cases, quorum_cases
from tests.filters.harness import Case, check
from tests.qmp_exports.daemons import QEMU_10

if TYPE_CHECKING:
    from pathlib import Path

CASES = [*debug_cases.CASES, *log_cases.CASES, *quorum_cases.CASES]

pytestmark = pytest.mark.skipif(not QEMU_10.available, reason="qemu-storage-daemon 10 missing")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_outcomes_are_the_same(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)

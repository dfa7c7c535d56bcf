# SPDX-License-Identifier: Apache-2.0
"""The same graph and the same I/O on vhostblk and on QEMU's storage daemon: same outcomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.filters import cases, qcow2_cases
from tests.filters.harness import Case, check
from tests.qmp_exports.daemons import QEMU_10

if TYPE_CHECKING:
    from pathlib import Path

CASES = [*cases.CASES, *qcow2_cases.CASES]

pytestmark = pytest.mark.skipif(not QEMU_10.available, reason="qemu-storage-daemon 10 missing")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_outcomes_are_the_same(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)

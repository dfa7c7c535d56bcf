# SPDX-License-Identifier: Apache-2.0
"""The same graph and the same I/O on vhostblk and on QEMU's storage daemon: same outcomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.filters.cases import CASES
from tests.filters.harness import Case, check
from tests.qmp_exports.daemons import QEMU_10
from vhostblk.schema.blockdev import BlockdevOptions

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not QEMU_10.available, reason="qemu-storage-daemon 10 missing")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_outcomes_are_the_same(case: Case, tmp_path: Path) -> None:
    if case.needs and case.needs not in BlockdevOptions.branch_names():
        pytest.skip(f"there is no driver '{case.needs}' yet")
    check(case, tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""vhostblk and QEMU's storage daemon have the same outcomes for scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.differential.comparison import findings
from tests.differential.script import parse
from tests.qmp_exports.daemons import QEMU_10

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.script"))

pytestmark = pytest.mark.skipif(not QEMU_10.available, reason="qemu-storage-daemon 10 missing")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_outcomes_are_the_same(path: Path) -> None:
    found = findings(parse(path.read_text(), path.name), QEMU_10)
    assert not found, "\n".join(map(str, found))

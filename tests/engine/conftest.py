# SPDX-License-Identifier: Apache-2.0
"""Everything here needs the compiled engine; tests with an `io` run on both ways to do file I/O."""

from __future__ import annotations

import pytest

from tests.engine.inspection import AVAILABLE
from tests.virtqueue.kinds import ring_kind
from vhostblk.engine import load

__all__ = ["ring_kind"]

collect_ignore_glob = ["test_*.py"] if load() is None else []
collect_ignore = (
    [] if AVAILABLE else ["test_differential.py", "test_differential_packed.py", "test_extents.py"]
)


@pytest.fixture(params=["uring", "pool"])
def io(request: pytest.FixtureRequest) -> str:
    """Name a way to do file I/O."""
    return str(request.param)

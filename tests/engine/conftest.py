# SPDX-License-Identifier: Apache-2.0
"""Everything here needs the compiled engine; tests with an `io` run on both ways to do file I/O."""

from __future__ import annotations

import pytest

from tests.virtqueue.kinds import ring_kind
from vhostblk.engine import load

__all__ = ["ring_kind"]

collect_ignore_glob = ["test_*.py"] if load() is None else []


@pytest.fixture(params=["uring", "pool"])
def io(request: pytest.FixtureRequest) -> str:
    """Name a way to do file I/O."""
    return str(request.param)

# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the device tests."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.virtio_blk.framing import Parser
from tests.virtio_blk.lanes import lane
from tests.virtqueue.kinds import ring_kind

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["lane", "parser", "ring_kind"]


@pytest.fixture
def parser() -> Iterator[Parser]:
    with closing(Parser()) as parser:
        yield parser

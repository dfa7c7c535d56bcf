# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the ring tests."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.virtqueue.support import Guest, QueuePair

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def guest() -> Iterator[Guest]:
    with closing(Guest()) as guest:
        yield guest


@pytest.fixture
def pair() -> Iterator[QueuePair]:
    with closing(QueuePair()) as pair:
        yield pair

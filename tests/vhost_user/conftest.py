# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the session's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.descriptors import open_fds
from tests.vhost_user.harness import Harness

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def harness() -> Iterator[Harness]:
    before = open_fds()
    harness = Harness()
    harness.negotiate()
    harness.backend.take_calls()
    yield harness
    harness.session.close()
    assert open_fds() <= before


@pytest.fixture
def fresh() -> Iterator[Harness]:
    before = open_fds()
    harness = Harness()
    yield harness
    harness.session.close()
    assert open_fds() <= before

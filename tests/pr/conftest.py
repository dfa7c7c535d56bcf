# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the library that answers SG_IO, and helpers that it is loaded into."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.pr import fake
from tests.pr.programs import Helper, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake.build(tmp_path_factory.mktemp("fake_sg"))


@pytest.fixture
def helper(tmp_path: Path, library: Path) -> Iterator[Helper]:
    with running(tmp_path, library=library) as helper:
        yield helper

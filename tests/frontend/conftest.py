# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests with a front-end: guest memory and an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.frontend.launch import IMAGE_SIZE
from tests.frontend.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory()
    yield memory
    memory.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A raw image of IMAGE_SIZE zeroes."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(IMAGE_SIZE)
    return path

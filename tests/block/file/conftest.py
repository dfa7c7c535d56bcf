# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.block.file.support import MIB

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=["io_uring", "threads"])
def aio(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * (MIB // 256))
    return path

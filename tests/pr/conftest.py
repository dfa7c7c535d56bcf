# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the library that answers SG_IO, and helpers that it is loaded into."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.pr import fake
from tests.pr.programs import Helper, running

if TYPE_CHECKING:
    from collections.abc import Iterator

FAKE_MPATH = Path(__file__).with_name("fake_mpath.c")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake.build(tmp_path_factory.mktemp("fake_sg"))


@pytest.fixture
def helper(tmp_path: Path, library: Path) -> Iterator[Helper]:
    with running(tmp_path, library=library) as helper:
        yield helper


@pytest.fixture(scope="session")
def mpath(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Compile what stands in for libmpathpersist."""
    library = tmp_path_factory.mktemp("fake_mpath") / "libmpathpersist.so.0"
    words = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*words, "-o", str(library), str(FAKE_MPATH)], check=True)
    return str(library)

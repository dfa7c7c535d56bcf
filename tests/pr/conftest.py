# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the library that answers SG_IO, helpers that it is loaded into, and who serves."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.pr import fake
from tests.pr.programs import Helper, running
from vhostblk.pr.compiled import load

if TYPE_CHECKING:
    from collections.abc import Iterator

FAKE_MPATH = Path(__file__).with_name("fake_mpath.c")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake.build(tmp_path_factory.mktemp("fake_sg"))


@pytest.fixture(scope="module", params=["compiled", "python"])
def lane(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the tests of a module twice: connections are served by compiled code, or by Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VHOSTBLK_ENGINE", "on" if request.param == "compiled" else "off")
        assert (load() is None) == (request.param == "python"), "vhostblk.pr._connection"
        yield


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

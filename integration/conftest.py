# SPDX-License-Identifier: Apache-2.0
"""Options and fixtures of the guest tests."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from integration.guest.server import Program

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--daemon",
        choices=[program.value for program in Program],
        default=Program.VHOSTBLK.value,
        help="the storage daemon to test; QEMU's own tests the tests",
    )
    parser.addoption(
        "--soak", type=int, default=300, help="operations of the soak test (10000: the long form)"
    )
    parser.addoption(
        "--kills", type=int, default=3, help="deaths of the daemon in the crash test (100: long)"
    )
    parser.addoption(
        "--migrations", type=int, default=2, help="in the migration test, there and back (20: long)"
    )
    parser.addoption(
        "--handovers", type=int, default=3, help="changes of the daemon under a guest (100: long)"
    )
    parser.addoption(
        "--nested", action="store_true", help="boot a guest in a guest, which takes minutes"
    )
    parser.addoption(
        "--debian",
        action="store_true",
        help="install packages in a Debian guest too (needs root and the network, once)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let no test end before a guest's own time-outs have, whose errors say more."""
    if config.getoption("timeout") is not None:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture
def program(request: pytest.FixtureRequest) -> Program:
    return Program(request.config.getoption("--daemon"))


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--soak"))


@pytest.fixture
def handovers(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--handovers"))


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--kills"))


@pytest.fixture
def migrations(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--migrations"))


@pytest.fixture
def vhostblk_only(program: Program) -> None:
    if program is not Program.VHOSTBLK:
        pytest.skip("needs what only vhostblk has")


@pytest.fixture
def debian(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--debian"))


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not `tmp_path`: its names can be too long for a Unix socket, and /tmp may be a tmpfs, which
    # knows no direct I/O.
    with tempfile.TemporaryDirectory(prefix="vhostblk-", dir="/var/tmp") as path:
        yield Path(path)

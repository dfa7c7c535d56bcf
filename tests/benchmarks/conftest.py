# SPDX-License-Identifier: Apache-2.0
"""The QEMU storage daemon as the device under load."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from benchmarks.daemons import Daemon, DaemonError, Disk, qemu_backend, running
from benchmarks.loadgen.build import BuildError, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Serve = Callable[[Disk], Daemon]


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    try:
        load()
    except BuildError as error:
        pytest.skip(f"no compiler: {error}")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start the QEMU storage daemon on a disk."""
    try:
        backend = qemu_backend()
    except DaemonError as error:
        pytest.skip(str(error))
    with contextlib.ExitStack() as stack:
        yield lambda disk: stack.enter_context(running(backend, disk, tmp_path))

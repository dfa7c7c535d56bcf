# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a block device, helpers, and a helper in the hands of a test."""

from __future__ import annotations

import socket
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.pr import fake
from vhostblk.pr.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vhostblk.reservations.wire import Reply, Request

PATIENCE = 30


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake.build(tmp_path_factory.mktemp("fake_sg"))


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """Have a loop device; helpers with `fake_sg.c` answer as its content says."""
    image = tmp_path / "device.img"
    image.write_bytes(fake.Result().encode().ljust(64 << 10, b"\0"))
    command = ["losetup", "--find", "--show", str(image)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"losetup: {error}")
    if made.returncode:
        pytest.skip(f"losetup: {made.stderr.strip()}")
    name = made.stdout.strip()
    yield name
    subprocess.run(["losetup", "--detach", name], check=True)


@contextmanager
def helper(path: Path, execute: Callable[[Request], Reply]) -> Iterator[Server]:
    """Have our helper's server in a thread; `execute` carries commands out."""
    with socket.socket(socket.AF_UNIX) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(16)
        listener.setblocking(False)
        server = Server(listener, execute)
        thread = threading.Thread(target=server.serve, args=(PATIENCE,))
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join(PATIENCE)
            assert not thread.is_alive()
            server.close()

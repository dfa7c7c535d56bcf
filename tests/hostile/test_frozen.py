# SPDX-License-Identifier: Apache-2.0
"""An iothread that is stuck in a write to a frozen file system: nobody else is.

The Python lane makes no such system call by itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.cli.process import wait_until
from tests.frontend.blk import BlkDriver
from tests.frontend.connection import Connection
from tests.frontend.launch import Daemon, Program
from tests.frontend.layout.virtio_blk import RequestType
from tests.frontend.memory import MIB, Memory
from vhostblk.engine import load

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(load() is None, reason="no compiled engine")


class Frozen(NamedTuple):
    """A daemon with two exports on an iothread each; a file of the first one's is frozen."""

    daemon: Daemon
    victim: BlkDriver
    bystander: BlkDriver
    #: While it is there the file system is frozen.
    switch: Path

    def freeze(self) -> None:
        """Have the victim's iothread get stuck."""
        self.switch.touch()
        self.victim.submit(RequestType.OUT, 4096, data_out=[bytes(4096)])
        self.victim.kick()


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("frozen") / "frozen.so"
    source = Path(__file__).with_name("frozen.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


@contextmanager
def _driver(path: Path) -> Iterator[BlkDriver]:
    memory = Memory()
    with BlkDriver(Connection.connect(path), memory) as driver:
        yield driver
    memory.close()


@pytest.fixture
def frozen(tmp_path: Path, shim: Path) -> Iterator[Frozen]:
    image = tmp_path / "disk"
    image.write_bytes(bytes(MIB))
    other, switch = tmp_path / "other.sock", tmp_path / "switch"
    address = f"addr.type=unix,addr.path={other}"
    preload = f"{os.environ.get('LD_PRELOAD', '')} {shim}"  # sanitizers come first
    daemon = Daemon(
        Program.VHOSTBLK,
        tmp_path,
        [f"driver=file,node-name=disk,filename={image}"],
        "id=victim,node-name=disk,writable=on,iothread=one",
        inherited=False,
        extra=[
            *("--object", "iothread,id=one", "--object", "iothread,id=two"),
            *("--blockdev", "driver=null-co,node-name=more,size=1048576,read-zeroes=on"),
            *("--export", f"vhost-user-blk,id=other,node-name=more,iothread=two,{address}"),
        ],
        env={"LD_PRELOAD": preload.strip(), "FROZEN": str(switch), "VHOSTBLK_LANE": "express"},
    )
    try:
        daemon.connect().close()
        with _driver(daemon.socket_path) as victim, _driver(other) as bystander:
            victim.write(0, bytes(4096))
            yield Frozen(daemon, victim, bystander, switch)
    finally:
        daemon.kill()


def test_others_are_served_and_the_front_end_leaves(frozen: Frozen) -> None:
    """Its requests are finished when the file system thaws, and then it is free for others."""
    frozen.freeze()
    frozen.victim.connection.close()
    for _ in range(50):
        assert frozen.bystander.read(0, 4096) == bytes(4096)
    frozen.switch.unlink()
    with _driver(frozen.daemon.socket_path) as driver:
        assert driver.read(0, 512) == bytes(512)
    assert frozen.daemon.stop() == 0, frozen.daemon.output()


def test_stuck_iothread_is_logged_and_the_daemon_ends(frozen: Frozen) -> None:
    frozen.freeze()
    told = "iothread 'one' is stuck in a write of 4096 bytes at 4096 of export 'victim': queue 0"
    wait_until(lambda: told in frozen.daemon.output())
    assert frozen.bystander.read(0, 4096) == bytes(4096)
    frozen.daemon.process.send_signal(signal.SIGTERM)
    assert frozen.daemon.process.wait(60) == 1
    assert frozen.daemon.output().count(told) >= 2  # the last one is the reason
    assert "Traceback" not in frozen.daemon.output()

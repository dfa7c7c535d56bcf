# SPDX-License-Identifier: Apache-2.0
"""A daemon with two exports: a victim, and a bystander, which is served all the time.

A hostile peer of the victim must not affect the bystander, nor the daemon's open files and
mappings.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cli.process import wait_until
from tests.frontend.blk import BlkDriver
from tests.frontend.connection import Connection
from tests.frontend.launch import Daemon, Program
from tests.frontend.memory import MIB, Memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SIZE = 4 * MIB
NODE = [f"driver=null-co,node-name=disk,size={SIZE},read-zeroes=on"]
EXPORT = "id=victim,node-name=disk,num-queues=2,writable=on"


class Bystander:
    """A front-end of the bystander's export, which checks in a thread that it is served."""

    def __init__(self, path: Path) -> None:
        self.memory = Memory(((0, 8 * MIB),))
        self.driver = BlkDriver(Connection.connect(path), self.memory)
        self.requests = 0
        self.error: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                assert self.driver.read(0, 4096) == bytes(4096)
                self.requests += 1
        except Exception as error:
            self.error = error

    def served(self) -> None:
        """Wait until it has been served again."""
        target = self.requests + 5
        wait_until(lambda: self.requests >= target or self.error is not None)
        assert self.error is None, self.error

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.driver.close()
        self.memory.close()


class Scene:
    """The daemon, its victim export, and the bystander."""

    def __init__(self, directory: Path, more: Sequence[str] = ()) -> None:
        """Start the daemon with the arguments `more`."""
        other = directory / "other.sock"
        extra = ["--blockdev", "driver=null-co,node-name=more,size=1048576,read-zeroes=on"]
        extra += [
            "--export",
            f"vhost-user-blk,id=o,node-name=more,addr.type=unix,addr.path={other}",
            *more,
        ]
        self.daemon = Daemon(
            Program.VHOSTBLK, directory, NODE, EXPORT, inherited=False, extra=extra
        )
        #: The socket of another export, if there is one.
        self.read_only: Path | None = None
        #: Where one of a large disk is, which reads as zeroes.
        self.large: Path | None = None
        self.connect().close()
        self.bystander = Bystander(other)
        with self.driver() as warm_up:  # creates threads and buffers that stay
            warm_up.read(0, 512)
        self.wait_free()
        self.before = self.holds()

    def connect(self) -> Connection:
        return self.daemon.connect()

    @contextmanager
    def driver(self, **options: bool) -> Iterator[BlkDriver]:
        memory = Memory()
        with BlkDriver(self.connect(), memory, num_queues=2, **options) as driver:
            yield driver
        memory.close()

    def wait_free(self) -> None:
        """Wait until the daemon has finished with the last front-end."""
        with self.connect() as connection:
            connection.sync()

    def holds(self) -> tuple[int, int]:
        """Count the daemon's open descriptors and its mappings of shared memory."""
        process = Path(f"/proc/{self.daemon.process.pid}")
        maps = (process / "maps").read_text()
        return len(list((process / "fd").iterdir())), maps.count("memfd:")

    def check(self) -> None:
        """Check that the daemon runs, holds no more than before, and serves both exports."""
        self.bystander.served()
        with self.driver() as driver:
            assert driver.read(0, 4096) == bytes(4096)
        self.wait_free()
        wait_until(lambda: self.holds() <= self.before)
        assert self.daemon.process.poll() is None, self.daemon.output()

    def close(self) -> None:
        self.bystander.close()
        assert self.daemon.stop() == 0, self.daemon.output()

# SPDX-License-Identifier: Apache-2.0
"""BLOCK_IO_ERROR: requests that fail in either lane, and a file system that is really full."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.frontend.blk import BlkDriver, RequestError
from tests.frontend.connection import Connection
from tests.frontend.loop_thread import LoopThread
from tests.frontend.memory import Memory
from tests.qmp_exports.daemons import Program, running
from tests.virtio_blk.lanes import lane
from tests.virtio_blk.support import HandNode
from vhostblk.daemon import Daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vhostblk.events import Event

__all__ = ["lane"]

MIB = 1 << 20

#: A file system of 64 KiB at $0 with an image of 1 MiB, which only the program that follows sees.
ON_A_SMALL_DISK = (
    *("unshare", "--map-root-user", "--mount", "sh", "-c"),
    'mount -t tmpfs -o size=64k tmpfs "$0" && truncate -s 1M "$0/disk.img" && exec "$@"',
)


class Served:
    """A daemon with one export, a front-end, and the I/O errors that were told."""

    def __init__(self, loop: LoopThread, daemon: Daemon, driver: BlkDriver) -> None:
        self._loop = loop
        self.daemon = daemon
        self.driver = driver
        self.told: list[dict[str, Any]] = []
        self._something = asyncio.Event()
        daemon.events.listen(self._keep)

    def _keep(self, event: Event) -> None:
        if event.name == "BLOCK_IO_ERROR":
            self.told.append(msgspec.to_builtins(event.data))
            self._something.set()

    def take(self) -> list[dict[str, Any]]:
        """Return what was told since the last call; an iothread's news come after the status."""

        async def wait() -> list[dict[str, Any]]:
            await asyncio.wait_for(self._something.wait(), 20)
            self._something.clear()
            told, self.told = self.told, []
            return told

        return self._loop.run(wait())

    def put_in_place(self, path: Path, flags: int) -> None:
        """Have the node's descriptor refer to another open file; nobody holds the former one."""

        async def replace() -> None:
            node = self.daemon.graph.find("disk")
            async with self.daemon.graph.drained([node]):
                other = os.open(path, flags | os.O_CLOEXEC)
                os.dup2(other, node.fd, inheritable=False)  # type: ignore[attr-defined]
                os.close(other)

        self._loop.run(replace())


def serve(tmp_path: Path, blockdev: dict[str, Any]) -> Iterator[Served]:
    address = {"type": "unix", "path": str(tmp_path / "e.sock")}
    export = {"type": "vhost-user-blk", "id": "e", "node-name": "disk", "addr": address}
    with LoopThread() as loop:
        daemon = Daemon(blockdevs=[blockdev], exports=[{**export, "writable": True}])
        loop.run(daemon.__aenter__())
        memory = Memory()
        try:
            with BlkDriver(Connection.connect(tmp_path / "e.sock"), memory) as driver:
                yield Served(loop, daemon, driver)
        finally:
            loop.run(daemon.close())
            memory.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    return path


@pytest.fixture
def served(lane: str, tmp_path: Path, image: Path) -> Iterator[Served]:
    yield from serve(tmp_path, {"driver": "file", "node-name": "disk", "filename": str(image)})


def failure(operation: str, reason: str, *, nospace: bool = False) -> dict[str, Any]:
    return {
        "qom-path": "",
        "device": "e",
        "node-name": "disk",
        "operation": operation,
        "action": "report",
        "nospace": nospace,
        "reason": reason,
    }


def test_a_file_that_fails(served: Served, image: Path) -> None:
    driver = served.driver
    served.put_in_place(image, os.O_RDONLY)
    with pytest.raises(RequestError):
        driver.write(0, b"x" * 512)
    assert served.take() == [failure("write", "Bad file descriptor")]
    with pytest.raises(RequestError):
        driver.write_zeroes((0, 4096))
    assert served.take() == [failure("write", "Bad file descriptor")]
    served.put_in_place(image, os.O_WRONLY)
    with pytest.raises(RequestError):
        driver.read(0, 512)
    assert served.take() == [failure("read", "Bad file descriptor")]
    served.put_in_place(image, os.O_RDWR)
    driver.write(0, b"x" * 512)
    assert driver.read(0, 512) == b"x" * 512
    driver.flush()
    assert not served.told


def test_what_the_guest_does_wrong_is_no_error_of_the_disk(served: Served) -> None:
    with pytest.raises(RequestError):
        served.driver.read(2 * MIB, 512)
    with pytest.raises(RequestError):
        served.driver.discard((2 * MIB, 512))
    served.driver.flush()
    assert not served.told


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "any text"), failure("read", "No space left on device", nospace=True)),
        (OSError("no errno"), failure("read", "Input/output error")),
        (RuntimeError("a driver's mistake"), failure("read", "Input/output error")),
    ],
)
def test_a_node_that_fails(
    lane: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: dict[str, Any],
) -> None:
    node = HandNode()
    node.error = error

    async def opened(*_arguments: object) -> HandNode:
        return node

    monkeypatch.setattr("vhostblk.block.drivers.null.NullNode.open", opened)
    for served in serve(tmp_path, {"driver": "null-co", "node-name": "disk"}):
        with pytest.raises(RequestError):
            served.driver.read(0, 512)
        assert served.take() == [told]
        node.error = None  # the last flush succeeds


def small_disk_available() -> bool:
    command = [*ON_A_SMALL_DISK[:5], "mount -t tmpfs tmpfs /mnt"]
    return not subprocess.run(command, capture_output=True, check=False).returncode


def test_a_full_file_system(lane: str, tmp_path: Path) -> None:
    if not small_disk_available():
        pytest.skip("no user or mount namespaces")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    command = (*ON_A_SMALL_DISK, str(mounted), sys.executable, "-m", "vhostblk")
    address = f"addr.type=unix,addr.path={tmp_path}/e.sock"
    arguments = [
        *("--blockdev", f"file,node-name=disk,filename={mounted}/disk.img"),
        *("--export", f"vhost-user-blk,id=e,node-name=disk,writable=on,{address}"),
    ]

    def fill() -> None:
        memory = Memory()
        with BlkDriver(Connection.connect(tmp_path / "e.sock"), memory) as driver:
            with pytest.raises(RequestError):
                driver.write(0, b"x" * (256 << 10))
        memory.close()

    async def main() -> None:
        program = Program("on a small disk", 0, command)
        async with running(program, tmp_path / "log", arguments) as session:
            await session.run("query-block-exports")  # answered when the exports are there
            await asyncio.to_thread(fill)
            told = await session.wait_event("BLOCK_IO_ERROR")
            assert told == failure("write", "No space left on device", nospace=True)
            assert "request failed: No space left on device" in (tmp_path / "log").read_text()

    asyncio.run(main())

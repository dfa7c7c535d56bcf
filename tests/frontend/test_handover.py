# SPDX-License-Identifier: Apache-2.0
"""A new daemon takes over from the running one; the front-end stays connected and sees a pause."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.cli.process import ROOT, wait_until
from tests.frontend.blk import FEATURES, BlkDriver
from tests.frontend.connection import Connection
from tests.frontend.inband import InbandConnection, read_in_band
from tests.frontend.launch import Daemon, Program, raw_file
from tests.frontend.layout.virtio_blk import RequestType
from tests.frontend.memory import Memory
from tests.virtio_blk.lanes import lane

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["lane"]

EXPORT = "id=export,node-name=disk,num-queues=2,writable=on"


@contextmanager
def first(
    directory: Path, image: Path, *extra: str, env: dict[str, str] | None = None
) -> Iterator[Daemon]:
    """Run a daemon that can be taken over from."""
    words = ("--handover", str(directory / "handover"), "--pidfile", str(directory / "pid"), *extra)
    blockdevs = raw_file(image)
    with Daemon(
        Program.VHOSTBLK, directory, blockdevs, EXPORT, inherited=False, extra=words, env=env
    ) as daemon:
        wait_until(lambda: (directory / "handover").exists())
        yield daemon


@contextmanager
def taker(directory: Path, *extra: str, env: dict[str, str] | None = None) -> Iterator[Taker]:
    started = Taker(directory, extra, env or {})
    try:
        yield started
    finally:
        started.process.terminate()
        started.process.wait(30)


class Taker:
    """A daemon that takes over, and can be taken over from."""

    def __init__(self, directory: Path, extra: Sequence[str], env: dict[str, str]) -> None:
        self._log = directory / "taker.err"
        self._pidfile = directory / "pid"
        words = ("--takeover", str(directory / "handover"), "--handover")
        arguments = [*words, str(directory / "handover"), "--pidfile", str(self._pidfile), *extra]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vhostblk", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            )

    def wait_ready(self) -> None:
        wait_until(self._is_ready)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.output()
        return self._pidfile.read_text() == f"{self.process.pid}\n"

    def output(self) -> str:
        return self._log.read_text()


@pytest.mark.usefixtures("lane")
@pytest.mark.parametrize("inflight", [True, False])
def test_a_session_goes_on_in_the_next_process(
    tmp_path: Path, image: Path, memory: Memory, inflight: bool
) -> None:
    with first(tmp_path, image) as old:
        with BlkDriver(old.connect(), memory, num_queues=2, inflight=inflight) as driver:
            driver.write(0, b"a" * 4096)
            driver.write(4096, b"b" * 4096, queue=1)
            with taker(tmp_path) as new:
                new.wait_ready()
                assert old.process.wait(30) == 0
                assert old.output() == ""
                assert driver.read(0, 8192, queue=1) == b"a" * 4096 + b"b" * 4096
                driver.write(8192, b"c" * 4096)
                # Another one, which takes over from a daemon that has taken over itself.
                with taker(tmp_path) as last:
                    last.wait_ready()
                    assert new.process.wait(30) == 0
                    assert driver.read(8192, 4096, queue=1) == b"c" * 4096
                    expected = [ring.last_used & 0xFFFF for ring in driver.rings]
                    assert driver.stop() == expected
                    driver.connection.sync()
                    last.process.terminate()
                    assert last.process.wait(30) == 0
                    assert last.output() == ""
    assert image.read_bytes()[:12288] == b"a" * 4096 + b"b" * 4096 + b"c" * 4096
    assert {path.name for path in tmp_path.iterdir() if path.is_socket()} == set()
    assert not (tmp_path / "pid").exists()


@pytest.mark.usefixtures("lane")
def test_rings_that_messages_kick_go_on_where_they_were(
    tmp_path: Path, image: Path, memory: Memory
) -> None:
    with first(tmp_path, image) as old:
        connection = InbandConnection.connect(old.socket_path)
        with BlkDriver(connection, memory, num_queues=2, start=5) as driver:
            for queue in (0, 1, 0):
                assert read_in_band(driver, connection, queue) == bytes(4096)
            # The hand-over happens while its own message has no reply yet.
            driver.submit(RequestType.OUT, data_out=[b"a" * 4096])
            driver.rings[0].publish()
            driver.rings[0].arm()
            connection.kick()
            wait_until(driver.rings[0].has_used)
            connection.sync()
            driver.poll()
            with taker(tmp_path) as new:
                new.wait_ready()
                for queue in (0, 1, 0):
                    assert read_in_band(driver, connection, queue) == b"a" * 4096
                assert driver.stop() == [ring.last_used & 0xFFFF for ring in driver.rings]
                assert "channel" not in new.output()
        connection.channel.close()


def test_where_nobody_is_there_to_take_over_from(tmp_path: Path, image: Path) -> None:
    words = ("--takeover", str(tmp_path / "none"))
    with Daemon(
        Program.VHOSTBLK, tmp_path, raw_file(image), EXPORT, inherited=False, extra=words
    ) as daemon:
        daemon.connect().close()
        assert daemon.stop() == 0


def run_taker_that_ends(
    directory: Path, number: signal.Signals
) -> subprocess.CompletedProcess[str]:
    """Run a taker that sends itself a signal when it has made everything, but not said so."""
    script = f"""
import os
from vhostblk.handover.taker import Taker
async def build(self, *arguments, former=Taker._build):
    await former(self, *arguments)
    os.kill(os.getpid(), {number.value})
Taker._build = build
from vhostblk.cli import main
main(["--takeover", {str(directory / "handover")!r}])
"""
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.usefixtures("lane")
def test_a_taker_that_dies_changes_nothing(tmp_path: Path, image: Path, memory: Memory) -> None:
    with first(tmp_path, image) as old:
        with BlkDriver(old.connect(), memory, num_queues=2, inflight=True) as driver:
            driver.write(0, b"a" * 4096)
            done = run_taker_that_ends(tmp_path, signal.SIGKILL)
            assert done.returncode == -signal.SIGKILL, done.stderr
            assert driver.read(0, 4096) == b"a" * 4096
            driver.write(4096, b"b" * 4096, queue=1)
            wait_until(lambda: "failed: the other process is gone" in old.output())
            with taker(tmp_path) as new:
                new.wait_ready()
                assert driver.read(4096, 4096) == b"b" * 4096
                driver.run(RequestType.FLUSH)


@pytest.mark.usefixtures("lane")
def test_a_front_end_that_can_not_be_taken_over_costs_the_others_nothing(
    tmp_path: Path, image: Path, memory: Memory
) -> None:
    other = tmp_path / "other.sock"
    words = [
        *("--blockdev", "driver=null-co,node-name=more,size=1048576,read-zeroes=on"),
        *("--export", f"vhost-user-blk,id=o,node-name=more,addr.type=unix,addr.path={other}"),
    ]
    with first(tmp_path, image, *words) as old, BlkDriver(old.connect(), memory) as driver:
        driver.write(0, b"a" * 4096)
        mad = Memory()
        with Connection.connect(other) as connection:
            connection.negotiate(FEATURES)
            connection.set_mem_table(mad.describe())
            connection.sync()
            mad.truncate()
            with taker(tmp_path) as new:
                assert new.process.wait(60) == 1
                assert "export 'o': ADD_MEM_REG: " in new.output()
            connection.wait_closed()
        assert driver.read(0, 4096) == b"a" * 4096
        with Connection.connect(other) as connection:
            connection.negotiate(FEATURES)
        with taker(tmp_path) as new:
            new.wait_ready()
            assert driver.read(0, 4096) == b"a" * 4096
        mad.close()


#: Has a giver wait for a taker's readiness for no more than a moment.
IMPATIENT = """
from vhostblk.handover import giver
async def expect(channel, kind, former=giver._expect):
    if kind is giver.Ready:
        channel._socket.settimeout(1.0)
    await former(channel, kind)
giver._expect = expect
"""


@pytest.mark.usefixtures("lane")
def test_a_taker_that_hangs_never_wakes_up(tmp_path: Path, image: Path, memory: Memory) -> None:
    (tmp_path / "sitecustomize.py").write_text(IMPATIENT)
    with (
        first(tmp_path, image, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as old,
        BlkDriver(old.connect(), memory, num_queues=2, inflight=True) as driver,
    ):
        driver.write(0, b"a" * 4096)
        done = run_taker_that_ends(tmp_path, signal.SIGSTOP)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert driver.read(0, 4096) == b"a" * 4096
        driver.write(4096, b"b" * 4096, queue=1)
        wait_until(lambda: "hand-over failed: the other process: timed out" in old.output())
        assert "can't" not in old.output()


#: Has the first flush fail that comes when an export is being suspended.
FAILING = """
import errno
from vhostblk.block.graph import edge
from vhostblk.daemon import Daemon
from vhostblk.handover import giver
failing = []
async def flush(node, former=edge.flush_node):
    if failing:
        failing.clear()
        raise OSError(errno.EIO, "Input/output error")
    await former(node)
async def suspend(self, export_id, former=Daemon.suspend_export):
    failing.append(export_id)
    return await former(self, export_id)
edge.flush_node = giver.flush_node = flush
Daemon.suspend_export = suspend
"""


@pytest.mark.usefixtures("lane")
def test_a_flush_that_fails_in_the_pause_changes_nothing(
    tmp_path: Path, image: Path, memory: Memory
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAILING)
    with (
        first(tmp_path, image, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as old,
        BlkDriver(old.connect(), memory, num_queues=2, inflight=True) as driver,
    ):
        driver.write(0, b"a" * 4096)
        with taker(tmp_path) as new:
            assert new.process.wait(30) == 1
            assert new.output().endswith("flush failed: Input/output error\n")
        assert "hand-over failed: flush failed: Input/output error" in old.output()
        assert driver.read(0, 4096) == b"a" * 4096
        driver.write(4096, b"b" * 4096, queue=1)
        driver.flush()
        assert old.stop() == 0


def test_what_cant_be_made_again_is_refused(tmp_path: Path, image: Path) -> None:
    """A node whose file has gone: the daemon notices before it has let go of anything."""
    with first(tmp_path, image) as old:
        image.rename(tmp_path / "elsewhere")
        with taker(tmp_path) as new:
            assert new.process.wait(30) == 1
            reason = f"node 'disk-file': Could not open '{image}': No such file or directory"
            assert new.output().endswith(f"{reason}\n")
        assert old.process.poll() is None
        old.connect().close()


class Filler(threading.Thread):
    """Writes one cluster of a disk after the other, until it is stopped."""

    def __init__(self, driver: BlkDriver, limit: int) -> None:
        super().__init__(name="front-end")
        self.count = 0
        self.error: BaseException | None = None
        self._driver = driver
        self._limit = limit
        self._stopping = threading.Event()

    def run(self) -> None:
        try:
            while not self._stopping.is_set() and self.count < self._limit:
                self._driver.write(self.count * CLUSTER, content(self.count))
                self.count += 1
        except BaseException as error:
            self.error = error

    def finish(self) -> None:
        self._stopping.set()
        self.join(60)
        if self.error is not None:
            raise self.error


CLUSTER = 4096


def content(number: int) -> bytes:
    return number.to_bytes(8, "little") * (CLUSTER // 8)


@pytest.mark.usefixtures("lane")
def test_tables_of_a_format_go_along_while_clusters_are_added(
    tmp_path: Path, memory: Memory
) -> None:
    """Only one process uses the image at a time: none overwrites later changes of the other."""
    path, limit = tmp_path / "disk.qcow2", 1 << 20
    form = ("-f", "qcow2", "-o", f"cluster_size={CLUSTER}", path, str(limit * CLUSTER))
    subprocess.run(["qemu-img", "create", "-q", *form], check=True)
    words = ("--handover", str(tmp_path / "handover"), "--pidfile", str(tmp_path / "pid"))
    blockdevs = [
        f"driver=file,node-name=file,filename={path}",
        "driver=qcow2,node-name=disk,file=file",
    ]
    with (
        Daemon(Program.VHOSTBLK, tmp_path, blockdevs, EXPORT, inherited=False, extra=words) as old,
        BlkDriver(old.connect(), memory, inflight=True) as driver,
    ):
        wait_until(lambda: (tmp_path / "handover").exists())
        filler = Filler(driver, limit)
        filler.start()
        with taker(tmp_path) as new:
            new.wait_ready()
            assert old.process.wait(30) == 0
            later = filler.count + 50
            wait_until(lambda: filler.count >= later or filler.error is not None)
            filler.finish()
            for number in range(0, filler.count, 16):
                count = min(16, filler.count - number)
                expected = b"".join(content(number + each) for each in range(count))
                assert driver.read(number * CLUSTER, count * CLUSTER) == expected
            driver.stop()
            driver.connection.sync()
            new.process.terminate()
            assert new.process.wait(30) == 0
            assert new.output() == ""
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=True)

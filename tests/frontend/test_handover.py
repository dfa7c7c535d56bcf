# SPDX-License-Identifier: Apache-2.0
"""A new daemon takes over from the running one; the front-end stays connected and sees a pause."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.cli.process import ROOT, wait_until
from tests.frontend.blk import FEATURES, BlkDriver
from tests.frontend.connection import Connection
from tests.frontend.inband import InbandConnection, read_in_band
from tests.frontend.launch import IMAGE_SIZE, Daemon, Program, raw_file
from tests.frontend.layout.vhost_user import HEADER, MEMORY_HEADER, VERSION, VRING_STATE, Request
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
    """Run a daemon with `--handover`."""
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
            # The hand-over happens while this front-end's message has no reply yet.
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
    """Run a taker that sends itself a signal when it is ready, before it reports this."""
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
            wait_until(
                lambda: "failed: the other process has closed the connection" in old.output()
            )
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


def null_exports(directory: Path, *names: str, driver: str = "null-co") -> list[str]:
    """Return options for exports without storage, whose sockets are in `directory`."""
    words: list[str] = []
    for name in names:
        node = f"driver={driver},node-name=n-{name},size=1048576,read-zeroes=on"
        address = f"addr.type=unix,addr.path={directory / name}"
        export = f"vhost-user-blk,id={name},node-name=n-{name},{address}"
        words += ["--blockdev", node, "--export", export]
    return words


@pytest.mark.usefixtures("lane")
def test_front_ends_within_messages_keep_nobody_waiting(
    tmp_path: Path, image: Path, memory: Memory
) -> None:
    """Slow front-ends delay no others, and are not disconnected."""
    names = ("header", "body", "descriptors", "silent")
    with (
        ExitStack() as stack,
        first(tmp_path, image, *null_exports(tmp_path, *names)) as old,
        BlkDriver(old.connect(), memory) as driver,
    ):
        connections = {
            name: stack.enter_context(Connection.connect(tmp_path / name)) for name in names
        }
        for connection in connections.values():
            connection.negotiate(FEATURES)
        table = frame_of_table(memory)
        features = HEADER.pack(Request.GET_FEATURES, VERSION, 0)
        connections["header"].send_raw(features[:4])
        state = HEADER.pack(Request.SET_VRING_NUM, VERSION, 8) + VRING_STATE.pack(0, 64)
        connections["body"].send_raw(state[:15])
        fds = [region.fd for region in memory.describe()]
        connections["descriptors"].send_raw(table[:30], fds)
        filler = Filler(driver, IMAGE_SIZE // CLUSTER, again=True)
        filler.start()
        with taker(tmp_path) as new:
            new.wait_ready()
            assert old.process.wait(30) == 0
            assert old.output() == ""
            wait_for_progress(filler)
            connections["header"].send_raw(features[4:])
            connections["header"].receive_reply(Request.GET_FEATURES)
            connections["body"].send_raw(state[15:])
            connections["body"].sync()
            connections["descriptors"].send_raw(table[30:])
            connections["descriptors"].sync()
            connections["silent"].sync()
            filler.finish()
            # The memory table was accepted: the next process gets it as well.
            with taker(tmp_path) as last:
                last.wait_ready()
                for connection in connections.values():
                    connection.sync()
                assert last.output() == ""
                assert new.output() == ""


def frame_of_table(memory: Memory) -> bytes:
    regions = memory.describe()
    payload = MEMORY_HEADER.pack(len(regions), 0) + b"".join(region.pack() for region in regions)
    return HEADER.pack(Request.SET_MEM_TABLE, VERSION, len(payload)) + payload


#: Code that lets reads of `null-aio` wait until a file exists, with a short limit for suspending.
HELD = """
import asyncio, os
from vhostblk.block.drivers import null
from vhostblk.handover import giver
async def preadv(self, offset, iov):
    os.write(2, b"begun\\n")
    while not os.path.exists({released!r}):
        await asyncio.sleep(0.01)
null.NullNode.preadv = preadv
giver.PAUSE_LIMIT = 1.0
"""


@pytest.mark.usefixtures("lane")
def test_requests_that_do_not_finish_end_a_hand_over(
    tmp_path: Path, image: Path, memory: Memory
) -> None:
    released = tmp_path / "released"
    (tmp_path / "sitecustomize.py").write_text(HELD.format(released=str(released)))
    words = null_exports(tmp_path, "slow", driver="null-aio")
    with (
        first(tmp_path, image, *words, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as old,
        BlkDriver(old.connect(), memory) as driver,
        closing(Memory()) as other,
        BlkDriver(Connection.connect(tmp_path / "slow"), other) as slow,
    ):
        slow.submit(RequestType.IN, data_in=[512])
        slow.kick()
        wait_until(lambda: "begun" in old.output())
        filler = Filler(driver, IMAGE_SIZE // CLUSTER, again=True)
        filler.start()
        with taker(tmp_path) as new:
            assert new.process.wait(60) == 1
            reason = "export 'slow' has not finished its requests in 1 seconds"
            assert new.output().endswith(f"{reason}\n")
        wait_for_progress(filler)
        released.touch()
        assert [request.status for request, _ in slow.drain()] == [0]
        assert slow.read(0, 512) == bytes(512)
        slow.connection.sync()
        with taker(tmp_path) as new:
            new.wait_ready()
            wait_for_progress(filler)
            filler.finish()
            assert slow.read(0, 512) == bytes(512)
            slow.connection.sync()


#: Code that makes a giver wait for a taker's readiness only for a moment.
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


#: Code that makes the first flush during the suspension of an export fail.
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
    """The file of a node was removed: the daemon notices before it has released anything."""
    with first(tmp_path, image) as old:
        image.rename(tmp_path / "elsewhere")
        with taker(tmp_path) as new:
            assert new.process.wait(30) == 1
            reason = f"node 'disk-file': Could not open '{image}': No such file or directory"
            assert new.output().endswith(f"{reason}\n")
        assert old.process.poll() is None
        old.connect().close()


class Filler(threading.Thread):
    """A thread that writes one cluster of a disk after the other, until it is stopped.

    `again`: it begins again after `limit` clusters.
    """

    def __init__(self, driver: BlkDriver, limit: int, *, again: bool = False) -> None:
        super().__init__(name="front-end", daemon=True)
        self.count = 0
        self.error: BaseException | None = None
        self._driver = driver
        self._limit = limit
        self._again = again
        self._stopping = threading.Event()

    def run(self) -> None:
        try:
            while not self._stopping.is_set() and (self._again or self.count < self._limit):
                self._driver.write(self.count % self._limit * CLUSTER, content(self.count))
                self.count += 1
        except BaseException as error:
            self.error = error

    def finish(self) -> None:
        self._stopping.set()
        self.join(60)
        if self.error is not None:
            raise self.error


CLUSTER = 4096


def wait_for_progress(filler: Filler) -> None:
    """Wait until more has been written."""
    later = filler.count + 50
    wait_until(lambda: filler.count >= later or filler.error is not None)
    assert filler.error is None


def content(number: int) -> bytes:
    return number.to_bytes(8, "little") * (CLUSTER // 8)


@pytest.mark.usefixtures("lane")
def test_tables_of_a_format_go_along_while_clusters_are_added(
    tmp_path: Path, memory: Memory
) -> None:
    """Only one process at a time uses the image, so none overwrites changes of the other."""
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
            wait_for_progress(filler)
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

# SPDX-License-Identifier: Apache-2.0
"""The program: its options, what it gives up, files, signals, the service manager."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.process import PATIENCE, environment, wait_until
from tests.pr import fake
from tests.pr.client import Client, parameters, reserve_in, reserve_out
from tests.pr.programs import Helper, ours, running
from vhostblk.pr.arguments import parse
from vhostblk.pr.helper import main
from vhostblk.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
#: CAP_SYS_RAWIO alone.
RAW_IO = "0000000000020000"


def run(
    *arguments: str, cwd: Path, variables: dict[str, str] | None = None, shell: str = ""
) -> subprocess.CompletedProcess[str]:
    words: Sequence[str] = ours(*arguments)
    if shell:
        words = ["bash", "-c", shell, "bash", *words]
    return subprocess.run(
        words,
        cwd=cwd,
        env={**environment(), **(variables or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def works(path: Path) -> None:
    """Send a command to a device."""
    with fake.device() as device, Client(path) as client:
        assert client.ask(reserve_in(length=100), device).data == fake.DATA[:100]


def test_help_and_version(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "(default '/var/run/qemu-pr-helper.sock')" in done.stdout
    assert "(default '/var/run/qemu-pr-helper.pid')" in done.stdout
    done = run("-V", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"vhostblk-pr-helper version {__version__}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bogus"], "unrecognized option '--bogus'"),
        (["-z"], "invalid option -- 'z'"),
        (["-k"], "option requires an argument -- 'k'"),
        (["--socket"], "option '--socket' requires an argument"),
        (["--daemon=1"], "option '--daemon' doesn't allow an argument"),
        (["-k", "relative"], "socket path must be absolute"),
        (["-u", "no-such-user"], "invalid user 'no-such-user'"),
        (["-g", "no-such-group"], "invalid group 'no-such-group'"),
        (["-u", "4294967295"], "invalid user '4294967295'"),
        (["word"], "word: Unexpected argument"),
        (["--x-vhostblk-timeout=0"], "--x-vhostblk-timeout=0: expected a number from 1 to 86400"),
        (
            ["--x-vhostblk-connections", "x"],
            "--x-vhostblk-connections x: expected a number from 1 to 65536",
        ),
    ],
)
def test_wrong_words(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"vhostblk-pr-helper: {message}",
        "vhostblk-pr-helper: Try `vhostblk-pr-helper --help' for more information.",
    ]


def test_options() -> None:
    arguments = parse(["-dqvv", "-f", "p", "--sock=/s", "-T", "x", "-u", "0", "-g", "12", "--verb"])
    assert (arguments.daemonize, arguments.is_quiet, arguments.level) == (True, True, 4)
    assert (arguments.pidfile, arguments.socket) == ("p", "/s")
    assert arguments.identity == (0, 12)
    assert (arguments.timeout, arguments.connections) == (30, 1024)
    own = parse(["--x-vhostblk-timeout", "5", "--x-vhostblk-connections=9"])
    assert (own.timeout, own.connections) == (5, 9)


def test_where_the_process_id_goes() -> None:
    assert parse([]).pidfile_to_write is None
    assert parse(["-d"]).pidfile_to_write == "/var/run/qemu-pr-helper.pid"
    assert parse(["-f", "p"]).pidfile_to_write == "p"
    assert parse([]).socket is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-k", "{dir}/no/s"], "Failed to bind socket to {dir}/no/s: No such file or directory"),
        (["-k", "{dir}/file"], "Failed to bind socket to {dir}/file: the file exists and is not"),
        (["-k", "{dir}/used"], "Failed to bind socket to {dir}/used: another process listens"),
        (
            ["-k", "{dir}/s", "-f", "{dir}/no/p"],
            "Could not create '{dir}/no/p': No such file or directory",
        ),
        (["-T", "bogus=1"], "Invalid parameter 'bogus'"),
    ],
)
def test_what_is_not_to_be_had(tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "file").write_text("precious")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "used"))
        other.listen()
        done = run(*(word.format(dir=tmp_path) for word in words), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("vhostblk-pr-helper: " + message.format(dir=tmp_path))
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "used"]
    assert (tmp_path / "file").read_text() == "precious"


def test_it_serves(helper: Helper) -> None:
    works(helper.path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it(tmp_path: Path, number: int) -> None:
    pidfile = tmp_path / "pid"
    with running(tmp_path, "-f", str(pidfile)) as helper:
        # It is written once the helper listens.
        wait_until(lambda: pidfile.exists() and pidfile.read_text() != "")
        assert pidfile.read_text() == f"{helper.process.pid}\n"
        assert helper.end(number) == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("compiled", [True, False])
def test_a_signal_while_a_command_runs(tmp_path: Path, library: Path, compiled: bool) -> None:
    """The client gets its reply; the command that it has sent ahead is not carried out."""
    result = fake.Result(milliseconds=3_600_000)
    with (
        running(tmp_path, library=library, compiled=compiled) as helper,
        fake.device(result) as device,
        Client(helper.path) as client,
        Client(helper.path) as idle,
    ):
        client.send(reserve_out(), [device])
        client.send(parameters(1, 2))
        client.send(reserve_in(), [device])
        wait_until(lambda: fake.asked(device).cdb == reserve_out())
        helper.process.terminate()
        assert idle.is_closed(), "the other one has been told before"
        fake.change(device, fake.Result())
        assert client.answer().status == 0
        assert client.is_closed()
        assert helper.process.wait(PATIENCE) == 0
        assert fake.asked(device).cdb == reserve_out()


def test_death_by_sigkill_while_a_command_runs(tmp_path: Path, library: Path) -> None:
    """The client sees the end of the connection; the next helper takes the socket's place."""
    result = fake.Result(milliseconds=PATIENCE * 1000)
    with (
        running(tmp_path, library=library) as helper,
        fake.device(result) as device,
        Client(helper.path) as client,
    ):
        client.send(reserve_in(), [device])
        wait_until(lambda: fake.asked(device).cdb == reserve_in())
        helper.process.kill()
        assert client.is_closed()
    with running(tmp_path, library=library) as helper:
        works(helper.path)


def test_the_time_that_a_command_may_take(tmp_path: Path, library: Path, helper: Helper) -> None:
    with fake.device() as device, Client(helper.path) as client:
        client.ask(reserve_in(), device)
        assert fake.asked(device).timeout == 30_000
    helper.end()
    with running(tmp_path, "--x-vhostblk-timeout=7", library=library) as other:
        with fake.device() as device, Client(other.path) as client:
            client.ask(reserve_in(), device)
            assert fake.asked(device).timeout == 7000


@needs_root
@pytest.mark.parametrize(
    ("words", "user", "group"),
    [([], 0, 0), (["-u", "nobody", "-g", "nogroup"], 65534, 65534), (["--user=12345"], 12345, 0)],
)
def test_privileges(tmp_path: Path, library: Path, words: list[str], user: int, group: int) -> None:
    with running(tmp_path, *words, library=library) as helper:
        works(helper.path)
        status = helper.status()
        for task in Path(f"/proc/{helper.process.pid}/task").iterdir():
            text = (task / "status").read_text()
            for line in (f"CapPrm:\t{RAW_IO}", f"CapEff:\t{RAW_IO}", "CapBnd:\t0000000000000000",
                         "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000",
                         "NoNewPrivs:\t1", "Seccomp:\t2"):  # fmt: skip
                assert line in text, (task, line)
        assert status["Uid"].split() == [str(user)] * 4
        assert status["Gid"].split() == [str(group)] * 4
        assert status["Groups"] == ""
        works(helper.path)
        assert helper.end() == ""


#: Runs the helper as a user without privileges, once all is imported.
_UNPRIVILEGED = """
import os, sys
from vhostblk.pr.helper import main
import vhostblk.pr.trace
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def open_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
        Path(path).chmod(0o777)
        yield Path(path)


def unprivileged(directory: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _UNPRIVILEGED, "-k", str(directory / "s"), *words],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )


def test_privileges_that_are_not_there(open_directory: Path) -> None:
    with unprivileged(open_directory) as process:
        with Client(open_directory / "s"):
            process.terminate()
        said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0
    assert said == "vhostblk-pr-helper: without CAP_SYS_RAWIO most commands will fail\n"
    assert not list(open_directory.iterdir())


def test_another_user_without_privileges(open_directory: Path) -> None:
    with unprivileged(open_directory, "-u", "0") as process:
        said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 1
    assert said == "vhostblk-pr-helper: Failed to drop privileges: Operation not permitted\n"
    assert not list(open_directory.iterdir())


def test_in_the_background(tmp_path: Path, library: Path) -> None:
    pidfile = tmp_path / "pid"
    path = tmp_path / "s"
    done = run(
        "-d", "-f", "pid", "-k", str(path), cwd=tmp_path, variables={"LD_PRELOAD": str(library)}
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pid = int(pidfile.read_text())
    try:
        works(path)
        assert os.readlink(f"/proc/{pid}/cwd") == "/"  # noqa: PTH115
        assert os.getsid(pid) != os.getsid(0)
        second = run("-d", "-f", "pid", "-k", f"{path}2", cwd=tmp_path)
        assert second.returncode == 1
        assert "Cannot lock pid file" in second.stderr
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not pidfile.exists() and not path.exists())


def activated(
    directory: Path, count: int, *arguments: str, kind: int = socket.SOCK_STREAM
) -> subprocess.Popen[str]:
    """Start as systemd does."""
    sockets = [socket.socket(socket.AF_UNIX, kind) for _ in range(count)]
    for number, sock in enumerate(sockets):
        sock.bind(str(directory / f"{number}.sock"))
        if kind == socket.SOCK_STREAM:
            sock.listen()
    fds = [sock.fileno() for sock in sockets]
    moved = " ".join(f"{3 + number}<&{fd}" for number, fd in enumerate(fds))
    process = subprocess.Popen(
        ["bash", "-c", f'export LISTEN_PID=$$; exec "$@" {moved}', "bash", *ours(*arguments)],
        cwd=directory,
        env={
            **environment(),
            "LISTEN_FDS": str(max(1, count)),
            "NOTIFY_SOCKET": str(directory / "notify"),
        },
        pass_fds=fds,
        stderr=subprocess.PIPE,
        text=True,
    )
    for sock in sockets:
        sock.close()
    return process


def test_socket_activation_in_the_background(tmp_path: Path) -> None:
    """The sockets were passed to the process that forks."""
    pidfile = tmp_path / "pid"
    with activated(tmp_path, 1, "-d", "-f", str(pidfile)) as process:
        assert process.wait(PATIENCE) == 0
    try:
        with Client(tmp_path / "0.sock"):
            pass
    finally:
        os.kill(int(pidfile.read_text()), signal.SIGTERM)


def test_nobody_reads_the_standard_error(tmp_path: Path) -> None:
    """The helper serves and ends, whatever it has to log."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    path = tmp_path / "h.sock"
    process = subprocess.Popen(
        ours("-k", str(path), "--x-vhostblk-connections=1"),
        cwd=tmp_path,
        env=environment(),
        stderr=writer,
    )
    os.close(writer)
    try:
        wait_until(path.exists)
        with Client(path):
            refused = socket.socket(socket.AF_UNIX)
            refused.connect(str(path))
            with refused:
                refused.settimeout(PATIENCE)
                assert refused.recv(4) == bytes(4)  # the greeting
                assert refused.recv(1) == b""
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        os.close(reader)


def test_socket_activation(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        process = activated(tmp_path, 1)
        with process, Client(tmp_path / "0.sock"):
            try:
                assert manager.recv(100) == b"READY=1"
            finally:
                process.terminate()
            assert manager.recv(100) == b"STOPPING=1"
            assert process.wait(PATIENCE) == 0
    assert (tmp_path / "0.sock").exists(), "the socket is systemd's"


@pytest.mark.parametrize(
    ("count", "words", "message"),
    [
        (0, [], "Socket activation failed: invalid file descriptor fd = 3: Bad file descriptor"),
        (1, ["-k", "/x"], "Unix socket can't be set when using socket activation"),
        (2, [], "socket activation with LISTEN_FDS > 1 is not supported"),
    ],
)
def test_wrong_activation(tmp_path: Path, count: int, words: list[str], message: str) -> None:
    with activated(tmp_path, count, *words) as process:
        said = process.communicate(timeout=PATIENCE)[1]
    assert (process.returncode, said) == (1, f"vhostblk-pr-helper: {message}\n")


def test_activation_with_a_socket_of_another_kind(tmp_path: Path) -> None:
    with activated(tmp_path, 1, kind=socket.SOCK_DGRAM) as process:
        said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 1
    assert said.startswith("vhostblk-pr-helper: Failed to use socket activation: ")


def test_tracing(tmp_path: Path, library: Path) -> None:
    listed = run("-T", "help", cwd=tmp_path).stdout.splitlines()
    assert listed == ["pr_helper_connect", "pr_helper_command", "pr_helper_disconnect"]
    words = ["-T", f"pr_helper_*,file={tmp_path}/trace"]
    with running(tmp_path, *words, library=library) as helper:
        works(helper.path)
        helper.end()
    cdb = reserve_in(length=100).hex()
    lines = [line.split(":", 1)[1] for line in (tmp_path / "trace").read_text().splitlines()]
    assert lines == [
        f"pr_helper_connect pid {os.getpid()}",
        f"pr_helper_command pid {os.getpid()} cdb {cdb} status 0 bytes 100",
        f"pr_helper_disconnect pid {os.getpid()}",
    ]


def test_an_unknown_trace_point(tmp_path: Path) -> None:
    with running(tmp_path, "-T", "no_such_point") as helper:
        said = helper.end()
    assert said == "vhostblk-pr-helper: warning: trace event 'no_such_point' does not exist\n"


@needs_root
def test_multipath_that_is_not_there_is_told_when_asked(tmp_path: Path) -> None:
    (tmp_path / "libmpathpersist.so.0").write_text("not a library")
    with running(tmp_path, "-v", variables={"LD_LIBRARY_PATH": str(tmp_path)}) as helper:
        said = helper.end()
    assert said.startswith("vhostblk-pr-helper: no multipath maps: ")
    assert "libmpathpersist.so.0: file too short" in said


@needs_root
def test_privileges_with_multipath(tmp_path: Path, library: Path, mpath: str) -> None:
    """CAP_SYS_ADMIN is for device mapper; disks that are no maps work as ever."""
    variables = {"LD_LIBRARY_PATH": str(Path(mpath).parent)}
    with running(tmp_path, "-v", library=library, variables=variables) as helper:
        works(helper.path)
        status = helper.status()
        assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 1 << 17 | 1 << 21
        assert int(status["CapBnd"], 16) == 0
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert status["Uid"].split() == ["0"] * 4
        assert helper.end() == ""


@needs_root
def test_another_user_has_no_multipath(tmp_path: Path, library: Path, mpath: str) -> None:
    """The library ends a process that may not open device mapper; multipathd obeys root only."""
    variables = {"LD_LIBRARY_PATH": str(Path(mpath).parent)}
    words = ["-v", "-u", "nobody"]
    with running(tmp_path, *words, library=library, variables=variables) as helper:
        works(helper.path)
        assert int(helper.status()["CapPrm"], 16) == 1 << 17
        said = helper.end()
    assert "no multipath maps: the helper runs as another user than root" in said


@needs_root
def test_multipath_that_does_not_start_is_told(tmp_path: Path, mpath: str) -> None:
    variables = {"LD_LIBRARY_PATH": str(Path(mpath).parent), "FAKE_MPATH_BROKEN": "1"}
    with running(tmp_path, "-v", variables=variables) as helper:
        said = helper.end()
    assert "no multipath maps: libmpathpersist.so.0: can't be initialized" in said


def test_it_is_small(helper: Helper) -> None:
    works(helper.path)
    assert int(helper.status()["VmHWM"].split()[0]) <= 25 * 1024


def test_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, vhostblk.pr.helper, vhostblk.cli.daemonize\n"
        "heavy = {'numpy', 'asyncio', 'msgspec', 'concurrent.futures', 'ssl', 'subprocess',\n"
        "         'multiprocessing', 'argparse', 'json', 'vhostblk.block', 'vhostblk.engine',\n"
        "         'vhostblk.schema', 'vhostblk.daemon', 'vhostblk.exports', 'vhostblk.qmp'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_it_listens_soon(tmp_path: Path) -> None:
    """Processor time, which is the same on a busy machine: the interpreter's own, and a bit."""
    times = []
    for number in range(3):
        pid = os.fork()
        if pid == 0:
            os.execve(sys.executable, [sys.executable, "-c", "pass"], environment())
        _, _, bare = os.wait4(pid, 0)
        path = tmp_path / f"{number}.sock"
        with subprocess.Popen(ours("-k", str(path)), env=environment(), cwd=tmp_path) as process:
            with Client(path):
                fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
                used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            process.terminate()
        times.append(used - bare.ru_utime - bare.ru_stime)
    assert min(times) < 0.1


def test_the_log_tells_what_clients_did_wrong(helper: Helper) -> None:
    with Client(helper.path) as client:
        client.send(bytes(16))
        assert client.is_closed()
    assert helper.end() == (
        f"vhostblk-pr-helper: pid {os.getpid()}: No file descriptor in request\n"
    )


def test_quiet(tmp_path: Path) -> None:
    with running(tmp_path, "-q") as helper:
        with Client(helper.path) as client:
            client.send(bytes(16))
            assert client.is_closed()
        assert helper.end() == ""


def test_a_second_helper_at_the_same_path(tmp_path: Path) -> None:
    with running(tmp_path) as helper:
        done = run("-k", str(helper.path), cwd=tmp_path)
        assert "another process listens there" in done.stderr
        with Client(helper.path):
            helper.end()

# SPDX-License-Identifier: Apache-2.0
"""`--monitor`: the command, driven as its users do."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.process import PATIENCE, refusal, run, running, wait_for_socket, wait_until

CHARDEV = ("--chardev", "socket,id=c,path=q.sock,server=on,wait=off")
#: Nodes whose opening takes the event loop some turns.
NODES = tuple(
    word for number in range(20) for word in ("--blockdev", f"null-co,node-name=n{number}")
)
NULL = ("--chardev", "null,id=c")


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(path))
    return client


def test_quit_tells_of_the_exports_and_leaves_nothing(tmp_path: Path) -> None:
    export = "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=v.sock"
    options = (*CHARDEV, "--monitor", "c", "--blockdev", "null-co,node-name=n", "--export", export)
    with running(*options, cwd=tmp_path) as daemon:
        wait_for_socket(daemon, "v.sock")
        with connect(tmp_path / "q.sock") as client, client.makefile("rb") as lines:
            assert "QMP" in json.loads(lines.readline())
            client.sendall(b"{'execute':'qmp_capabilities'}{'execute':'quit','id':1}")
            assert json.loads(lines.readline()) == {"return": {}}
            assert json.loads(lines.readline()) == {"return": {}, "id": 1}
            event = json.loads(lines.readline())
            assert (event["event"], event["data"]) == ("BLOCK_EXPORT_DELETED", {"id": "e"})
            assert lines.readline() == b""
        assert daemon.communicate(timeout=PATIENCE) == ("", "")
        assert daemon.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_qmp_shell(tmp_path: Path) -> None:
    with running(*CHARDEV, "--monitor", "c", cwd=tmp_path) as daemon:
        wait_for_socket(daemon, "q.sock")
        done = subprocess.run(
            [sys.executable, "-m", "qemu.qmp.qmp_shell", str(tmp_path / "q.sock")],
            input="query-version\nblockdev-add driver=null-co node-name=n size=512\nquit\n",
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env={"HOME": str(tmp_path), "TERM": "dumb"},
        )
        assert "vhostblk" in done.stdout, done
        assert done.stdout.count('"return": {}') == 2, done
        assert daemon.wait(PATIENCE) == 0


def test_pretty_over_an_inherited_listener(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "inherited"))
        listener.listen()
        fd = listener.fileno()
        chardev = f"socket,id=c,fd={fd},server=on,wait=off"
        options = ("--chardev", chardev, "--monitor", "chardev=c,mode=control,pretty=on")
        with running(*options, cwd=tmp_path, pass_fds=[fd]):
            with connect(tmp_path / "inherited") as client:
                assert client.recv(11, socket.MSG_WAITALL) == b'{\r\n    "QMP'


def test_no_command_is_carried_out_where_start_up_fails(tmp_path: Path) -> None:
    """A client that connects early is greeted, and gets no answer."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "inherited"))
        listener.listen()
        with connect(tmp_path / "inherited") as client:
            client.sendall(b"{'execute':'nonsense'}{'execute':'qmp_capabilities'}]")
            chardev = f"socket,id=c,fd={listener.fileno()},server=on,wait=on"
            options = ("--chardev", chardev, "--monitor", "c", *NODES, "--blockdev", "bogus")
            done = run(*options, cwd=tmp_path, pass_fds=[listener.fileno()])
            assert "Parameter 'driver' does not accept value 'bogus'" in done.stderr
            said = b""
            with suppress(ConnectionResetError):  # its commands were not read
                while some := client.recv(4096):
                    said += some
            assert said.count(b"\n") == 1
            assert "QMP" in json.loads(said)


def test_start_up_loads_no_numpy(tmp_path: Path) -> None:
    with running(*CHARDEV, "--monitor", "c", "--pidfile", "pid", cwd=tmp_path) as daemon:
        wait_until((tmp_path / "pid").exists, daemon)
        assert "numpy" not in Path(f"/proc/{daemon.pid}/maps").read_text()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("d", 'chardev "d" not found'),
        ("c,mode=readline", "Only QMP is supported"),
        ("c,pretty=maybe", "Parameter 'pretty' expects 'on' or 'off'"),
        ("help", "Help is not available for this option"),
    ],
)
def test_refusals(tmp_path: Path, value: str, said: str) -> None:
    assert refusal(*NULL, "--monitor", value, cwd=tmp_path) == f"--monitor {value}: {said}"


def test_two_monitors_on_one_device(tmp_path: Path) -> None:
    done = run(*NULL, "--monitor", "c", "--monitor", "c", cwd=tmp_path)
    assert done.stderr == "vhostblk: --monitor c: chardev 'c' is already in use\n"

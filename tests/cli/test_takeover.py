# SPDX-License-Identifier: Apache-2.0
"""What the command line of a process that takes over says beside `--takeover`."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.process import PATIENCE, command, environment, refusal, running, wait_for_socket
from tests.cli.test_refusals import ADDRESS
from vhostblk.cli.arguments import parse
from vhostblk.cli.run import _plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXPORT = "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=v.sock"
NODE = "null-co,node-name=n,size=1048576"
DIFFERENT = "is taken over as it is; on the command line these are different"
TAKEN: dict[str, list[dict[str, Any]]] = {
    "object": [{"qom-type": "iothread", "id": "i"}],
    "blockdev": [{"driver": "null-co", "node-name": "n", "size": 1048576}],
    "export": [
        {
            "type": "vhost-user-blk",
            "id": "e",
            "node-name": "n",
            "addr": {"type": "unix", "path": "v.sock"},
        }
    ],
}
SAME = ["--object", "iothread,id=i", "--blockdev", NODE, "--export", EXPORT]


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ([], []),
        (SAME, []),
        (["--object", "iothread,id=i", "--blockdev", NODE], ["export 'e' is taken over; {}"]),
        (
            [*SAME, "--object", "iothread,id=j"],
            ["object 'j' is not made: the daemon that is taken over has none"],
        ),
        (
            [*SAME, "--blockdev", "null-co,node-name=n,size=4096,read-zeroes=on"],
            [f"node 'n' {DIFFERENT}: size, read-zeroes"],
        ),
    ],
)
def test_differences(words: list[str], lines: list[str]) -> None:
    planned = _plan(parse(["--takeover", "h", *words]))
    wanted = [line.replace("{}", "the command line has none") for line in lines]
    assert list(planned.differences(TAKEN)) == wanted


def test_the_short_form(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"QFI\xfb\0\0\0\3".ljust(512, b"\0"))  # a guest may make it look so
    taken = {
        "object": [],
        "blockdev": [
            {
                "driver": "raw",
                "node-name": "disk",
                "read-only": True,
                "file": {"driver": "file", "filename": str(image)},
            }
        ],
        "export": [{**TAKEN["export"][0], "id": "disk", "node-name": "disk", "num-queues": 2}],
    }
    planned = _plan(parse(["--takeover", "h", str(image), f"{ADDRESS},num-queues=2"]))
    assert list(planned.differences(taken)) == []
    planned = _plan(parse(["--takeover", "h", f"{ADDRESS},num-queues=3", "--blockdev", NODE]))
    assert list(planned.differences(taken)) == [
        "node 'disk' is taken over; the command line has none",
        "node 'n' is not made: the daemon that is taken over has none",
        "export 'disk' is taken over as it is; on the command line these are different: num-queues",
    ]


@pytest.fixture
def running_daemon(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    words = ("--blockdev", NODE, "--export", EXPORT, "--handover", "h")
    with running(*words, cwd=tmp_path) as daemon:
        wait_for_socket(daemon, str(tmp_path / "h"))
        yield daemon


def test_wrong_options_are_refused_before_anything_moves(
    tmp_path: Path, running_daemon: subprocess.Popen[str]
) -> None:
    for option in ("--blockdev", "--export", "--object"):
        said = refusal("--takeover", "h", option, "bogus,id=e,node-name=n", cwd=tmp_path)
        assert "bogus" in said
    assert running_daemon.poll() is None


def test_a_difference_is_a_warning(tmp_path: Path, running_daemon: subprocess.Popen[str]) -> None:
    words = ("--takeover", "h", "--blockdev", NODE, "--export", f"{EXPORT},writable=on")
    with running(*words, cwd=tmp_path) as taker:
        assert running_daemon.wait(PATIENCE) == 0
        taker.terminate()
        _, said = taker.communicate(timeout=PATIENCE)
    assert said == (f"vhostblk: warning: --takeover: export 'e' {DIFFERENT}: writable\n")


def test_a_daemon_with_nothing_to_do_says_so(tmp_path: Path) -> None:
    for words in ([], ["--takeover", "no-such-socket"], ["--blockdev", NODE]):
        process = subprocess.Popen(
            command(*words),
            cwd=tmp_path,
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert process.stderr.readline() == (
            "vhostblk: warning: nothing is exported, and there is no monitor to change that\n"
        )
        process.terminate()
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0

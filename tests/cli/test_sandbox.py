# SPDX-License-Identifier: Apache-2.0
"""`--sandbox` and `--run-as` on the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.process import refusal, running, wait_until

NODE = ("--blockdev", "null-co,node-name=n,size=1048576")


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def served(cwd: Path, *arguments: str) -> dict[str, str]:
    """Return /proc/PID/status of a daemon that has started."""
    with running(*NODE, *arguments, "--pidfile", "pid", cwd=cwd) as daemon:
        pidfile = cwd / "pid"
        wait_until(lambda: pidfile.exists() and pidfile.read_text() != "", daemon)
        if "--run-as" in arguments:  # it comes after the file
            wait_until(lambda: status(daemon.pid)["Uid"].split()[0] != "0", daemon)
        return status(daemon.pid)


def test_it_is_on_by_default(tmp_path: Path) -> None:
    found = served(tmp_path)
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    assert int(found["CapEff"], 16) & ~0x0100440F == 0


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    before, found = status(os.getpid()), served(tmp_path, "--sandbox", "off")
    for name in ("NoNewPrivs", "Seccomp", "CapEff", "CapBnd"):
        assert found[name] == before[name]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user(tmp_path: Path) -> None:
    found = served(tmp_path, "--run-as", "12345:23456")
    assert found["Uid"].split() == ["12345"] * 4
    assert found["Gid"].split() == ["23456"] * 4
    assert found["Groups"].split() == ["23456"]
    assert int(found["CapPrm"], 16) == 0


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (("--sandbox", "on,bogus=1"), "Parameter 'bogus' is unexpected"),
        (("--sandbox", "maybe"), "Parameter 'enable' expects 'on' or 'off'"),
        (("--sandbox", "spawn=perhaps"), "Parameter 'spawn' does not accept value 'perhaps'"),
        (("--run-as", "no-such-user"), "user 'no-such-user' doesn't exist"),
        (("--run-as", "0:no-such-group"), "group 'no-such-group' doesn't exist"),
        (
            ("--run-as", "4000000000"),
            "user 4000000000 has no entry that names a group; use USER:GROUP",
        ),
        (("--run-as", "1:4294967295"), "group 4294967295 is out of range"),
    ],
)
def test_bad_values(tmp_path: Path, option: tuple[str, str], reason: str) -> None:
    assert refusal(*option, cwd=tmp_path) == f"{' '.join(option)}: {reason}"


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    said = refusal("--sandbox", "on,directory=none", cwd=tmp_path)
    assert said == "--sandbox: directory=none: no such directory"


def test_directories_where_all_files_are_allowed(tmp_path: Path) -> None:
    said = refusal("--sandbox", "files=allow,directory=.", cwd=tmp_path)
    assert said.endswith(
        "directory= restricts the files that may be opened, files=allow allows all"
    )

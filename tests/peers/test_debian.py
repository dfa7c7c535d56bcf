# SPDX-License-Identifier: Apache-2.0
"""Debian roots are made once, and are complete; debootstrap and dpkg-deb are stand-ins."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from peers import debian
from peers.debian import TRIXIE, RootError, make_root
from tests.cli.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parents[2]

#: debootstrap counts its runs, and waits while there is a file `hold`. $5 is the target.
DEBOOTSTRAP = """#!/bin/sh
echo run >> {dir}/runs
while [ -e {dir}/hold ]; do sleep 0.01; done
mkdir -p "$5/var/cache/apt/archives"
touch "$5/var/cache/apt/archives/a.deb"
"""
NO_ROUTE = """#!/bin/sh
echo run >> {dir}/runs
mkdir -p "$5/debootstrap"
echo I: Retrieving
echo E: no route to "$6"
exit 1
"""
#: dpkg-deb -x: the loader is a script that succeeds.
DPKG_DEB = """#!/bin/sh
cd "$3" && mkdir -p usr/lib64 usr/bin usr/include usr/lib/x86_64-linux-gnu/qemu
touch usr/lib/x86_64-linux-gnu/qemu/block-blkio.so
printf '#!/bin/sh\\n' > usr/lib64/ld-linux-x86-64.so.2
chmod +x usr/lib64/ld-linux-x86-64.so.2
touch usr/include/blkio.h usr/lib/x86_64-linux-gnu/libblkio.so.1
touch usr/bin/qemu-storage-daemon usr/bin/qemu-pr-helper usr/bin/qemu-img usr/bin/qemu-io
"""
BUILDER = """
import sys
from contextlib import contextmanager
from pathlib import Path
from peers import debian
debian.CACHE = Path(sys.argv[1], "cache")
debian._SYSTEM_PATH = f"{sys.argv[1]}/bin"
debian.make_root()
"""


def install(directory: Path, name: str, text: str) -> None:
    path = directory / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.replace("{dir}", str(directory)))
    path.chmod(0o755)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the stand-ins in `bin`, for this process and its children."""
    install(tmp_path, "debootstrap", DEBOOTSTRAP)
    install(tmp_path, "dpkg-deb", DPKG_DEB)
    monkeypatch.setattr(debian, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(debian, "_SYSTEM_PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path


def runs(place: Path) -> int:
    path = place / "runs"
    return len(path.read_text().splitlines()) if path.exists() else 0


@contextmanager
def builder(place: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that makes the root; it is killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(place)],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def must_wait(process: subprocess.Popen[str]) -> None:
    """Wait until a builder says that it waits for another one."""
    assert process.stderr is not None
    assert "waiting for another process" in process.stderr.readline()


def left(place: Path) -> list[str]:
    """List the files in the cache, except the lock and the log."""
    return sorted(
        path.name for path in (place / "cache").iterdir() if path.suffix not in (".lock", ".log")
    )


def test_a_root_is_made_once(place: Path) -> None:
    make_root()
    assert TRIXIE.is_complete()
    assert debian.program("qemu-img")[-1] == str(place / "cache/trixie/usr/bin/qemu-img")
    make_root()
    assert runs(place) == 1
    assert left(place) == ["trixie"]


def test_a_root_that_lost_a_file_is_made_again(place: Path) -> None:
    make_root()
    (place / "cache/trixie/usr/bin/qemu-img").unlink()
    with pytest.raises(RootError, match="has no qemu-img"):
        debian.program("qemu-img")
    make_root()
    assert TRIXIE.is_complete()


def test_without_a_network_all_mirrors_are_tried_and_the_error_names_the_cure(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(place, "debootstrap", NO_ROUTE)
    monkeypatch.setattr(debian, "mirrors", lambda: ["http://near", "http://far"])
    with pytest.raises(RootError) as caught:
        make_root()
    text = str(caught.value)
    assert "http://near: E: no route to http://near" in text
    assert "http://far: E: no route to http://far" in text
    assert "needs a network that reaches a mirror of Debian trixie" in text
    assert "\n" not in text
    assert left(place) == []


def test_packages_that_lack_a_program_are_an_error(place: Path) -> None:
    install(place, "dpkg-deb", DPKG_DEB.replace("usr/bin/qemu-io\n", "\n"))
    with pytest.raises(RootError, match="its packages lack usr/bin/qemu-io"):
        make_root()
    assert left(place) == []


def test_a_program_that_does_not_start_is_an_error(place: Path) -> None:
    install(place, "dpkg-deb", DPKG_DEB.replace("/bin/sh\\n'", "/bin/sh\\necho E: bad; exit 1\\n'"))
    with pytest.raises(RootError, match="failed: E: bad"):
        make_root()
    assert left(place) == []


def test_a_second_builder_waits_for_the_first(place: Path) -> None:
    (place / "hold").touch()
    with builder(place) as first:
        wait_until(lambda: runs(place) == 1)
        with builder(place) as second:
            must_wait(second)
            (place / "hold").unlink()
            assert second.wait(30) == first.wait(30) == 0
    assert runs(place) == 1
    assert TRIXIE.is_complete()


def test_a_killed_builder_leaves_nothing_that_the_next_one_trips_over(place: Path) -> None:
    """Its debootstrap keeps running: the next builder waits until it ends."""
    (place / "hold").touch()
    with builder(place):
        wait_until(lambda: runs(place) == 1)
    with builder(place) as second:
        must_wait(second)
        assert not (place / "cache/trixie").exists()
        (place / "hold").unlink()
        assert second.wait(30) == 0
    assert runs(place) == 2
    assert left(place) == ["trixie"]
    assert TRIXIE.is_complete()


def test_an_error_is_one_line(place: Path) -> None:
    (place / "bin/debootstrap").unlink()
    with pytest.raises(RootError, match="debootstrap is not installed"):
        make_root()

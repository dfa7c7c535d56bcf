# SPDX-License-Identifier: Apache-2.0
"""The front-end with libblkio, from the Debian root."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from benchmarks.compare import main, peer
from benchmarks.daemons import DaemonError, Disk, qemu_backend, version
from benchmarks.libblkio.client import run_bench
from benchmarks.loadgen.run import RunError
from peers import debian
from peers.debian import TRIXIE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.benchmarks.conftest import Serve


needs_root = pytest.mark.skipif(not TRIXIE.is_complete(), reason="no Debian 13 root")


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


@pytest.fixture
def _no_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(debian, "CACHE", tmp_path)


@pytest.mark.usefixtures("_no_root")
def test_no_debootstrap_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_arguments, **_more: None)
    assert main(["--client", "libblkio"]) == 1
    assert "debootstrap is not installed" in one_line(capsys)


@pytest.mark.usefixtures("_no_root")
def test_installed_daemon_is_the_peer_where_there_is_no_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("QEMU_STORAGE_DAEMON", raising=False)
    assert peer(None) is None


def test_several_queues_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--client", "libblkio", "--queues", "2"]) == 1
    assert "one queue" in one_line(capsys)


def test_a_peer_that_is_no_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(DaemonError, match="has no qemu-storage-daemon"):
        qemu_backend(where=tmp_path)
    with pytest.raises(DaemonError, match="not a program"):
        qemu_backend(where=tmp_path / "nothing")


@needs_root
def test_daemon_of_the_root_runs_with_its_own_libraries() -> None:
    assert "version 10." in version(qemu_backend(where=TRIXIE.path))


@needs_root
@pytest.mark.parametrize("write", [False, True])
def test_short_run(serve: Serve, write: bool) -> None:
    daemon = serve(Disk("null-co", ("size=16777216",)))
    result, cpu = run_bench(
        daemon.sockets[0],
        depth=4,
        block_size=4096,
        span=16 << 20,
        write=write,
        sequential=False,
        warm_up=0.01,
        seconds=0.1,
        seed=1,
        cpu_seconds=daemon.cpu_seconds,
    )
    assert (result.writes if write else result.reads) == result.latency.count > 0
    assert result.seconds == pytest.approx(0.1, abs=0.5)
    assert cpu >= 0


@needs_root
def test_device_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nobody"):
        run_bench(
            tmp_path / "nobody.sock",
            depth=1,
            block_size=4096,
            span=1 << 20,
            write=False,
            sequential=False,
            warm_up=0,
            seconds=0.1,
            seed=1,
            cpu_seconds=lambda: 0.0,
        )

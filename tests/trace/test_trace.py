# SPDX-License-Identifier: Apache-2.0
"""Trace points, their patterns and their output."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

import pytest

from tests.cli.process import refusal, run
from vhostblk.errors import VhostblkError
from vhostblk.qmp.commands import load_all
from vhostblk.trace import options, point, points

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NODE = ("--blockdev", "null-co,node-name=n,size=1048576")


load_all()  # each command declares trace points


@pytest.fixture(autouse=True)
def _all_off() -> Iterator[None]:
    yield
    for found in point.POINTS.values():
        found.enabled = False


def enabled() -> set[str]:
    return {name for name, found in point.POINTS.items() if found.enabled}


def apply(text: str) -> list[str]:
    warnings: list[str] = []
    options.apply(text, warnings.append)
    return warnings


def test_all_are_off_to_begin_with() -> None:
    assert enabled() == set()


def test_names_and_patterns() -> None:
    assert apply("blk_root_attach") == []
    assert enabled() == {"blk_root_attach"}
    assert apply("enable=qmp_e*_quit") == []
    assert enabled() == {"blk_root_attach", "qmp_enter_quit", "qmp_exit_quit"}
    assert apply("-qmp_*") == []
    assert apply("blk_root_?etach") == []
    assert enabled() == {"blk_root_attach", "blk_root_detach"}


def test_what_does_not_exist() -> None:
    assert apply("bogus") == ["trace event 'bogus' does not exist"]
    assert apply("Blk_root_attach") == ["trace event 'Blk_root_attach' does not exist"]
    assert apply("bogus*") == []
    with pytest.raises(VhostblkError, match="Invalid parameter 'bogus'"):
        apply("*,bogus=1")


def test_an_events_file(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text("# all of it\nblk_*\n\n-blk_drained_*\n bogus\n")
    warnings = apply(f"events={path}")
    assert warnings == [f"{path}:5: trace event ' bogus' does not exist"]
    assert "blk_root_attach" in enabled()
    assert "blk_drained_begin" not in enabled()
    with pytest.raises(VhostblkError, match="/no/x: No such file or directory"):
        apply("events=/no/x")


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "out%d"
    apply(f"blk_root_attach,file={path}")
    before = time.time()
    points.blk_root_attach("back\nend", "node")
    text = (tmp_path / f"out{os.getpid()}").read_text()
    match = re.fullmatch(r"(\d+)@(\d+\.\d{6}):blk_root_attach blk back\\nend node node\n", text)
    assert match is not None, text
    assert int(match[1]) == os.getpid()
    assert before - 1 <= float(match[2]) <= time.time()
    apply(f"file={os.devnull}")
    with pytest.raises(VhostblkError, match="Error opening logfile /no/x: No such file"):
        apply("file=/no/x")


def test_a_point_that_is_off_costs_next_to_nothing() -> None:
    def looked_at(times: int) -> float:
        start = time.perf_counter_ns()
        for _ in range(times):
            if points.virtio_blk_burst.enabled:
                points.virtio_blk_burst(0, 0, 0)
        return (time.perf_counter_ns() - start) / times

    assert min(looked_at(10_000) for _ in range(20)) < 100


def test_every_text_fits_its_arguments() -> None:
    for found in point.POINTS.values():
        kinds = re.findall("%[sd]", found.text)
        assert found.text % tuple(1 if kind == "%d" else "x" for kind in kinds)


def test_the_command(tmp_path: Path) -> None:
    done = run("-T", "help", cwd=tmp_path)
    assert done.returncode == 0
    assert "qmp_enter_quit" in done.stdout.split("\n")
    assert refusal("-T", "file=/no/x", cwd=tmp_path) == (
        "-T file=/no/x: Error opening logfile /no/x: No such file or directory"
    )
    done = run("--trace", "bdrv_*", "-T", "bogus", *NODE, "--blockdev", "bogus", cwd=tmp_path)
    assert "vhostblk: warning: trace event 'bogus' does not exist\n" in done.stderr
    assert re.search(r"\d+@\d+\.\d{6}:bdrv_open_common node n driver null-co\n", done.stderr)

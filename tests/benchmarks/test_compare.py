# SPDX-License-Identifier: Apache-2.0
"""The comparison program: cases, tables, chart, and a short run of it all."""

from __future__ import annotations

import json
import xml.etree.ElementTree
from typing import TYPE_CHECKING

import pytest

from benchmarks.cases import CASES, chosen_cases, make_image
from benchmarks.compare import main
from benchmarks.daemons import DaemonError, qemu_backend
from benchmarks.measure import Footprint, Point, Row
from benchmarks.plot import as_svg
from benchmarks.report import Report, as_json, as_text, ratio
from benchmarks.verify import main as verify

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def _qemu() -> None:
    try:
        qemu_backend()
    except DaemonError as error:
        pytest.skip(str(error))


def point(*iops: float) -> Point:
    return Point(list(iops), [1.0] * len(iops), [2.0] * len(iops), [3.0] * len(iops))


def report() -> Report:
    names = ["a", "b", "c"]
    rows = [
        Row(CASES[0], 32, {"a": point(1000, 3000, 5000), "b": point(1000), "c": point(1500)}),
        Row(CASES[0], 1, {"a": point(500), "b": point(1000)}),
        Row(CASES[1], 1, {"a": point(500)}),
    ]
    return Report(names, rows, [], [Footprint("a", 10, 100.0, 20.0, 21.0, 0.0)])


def test_ratio_is_of_the_medians_to_the_best_of_the_others() -> None:
    made = report()
    assert ratio(made.throughput[0], made.backends) == pytest.approx(2.0)
    assert ratio(made.throughput[1], made.backends) == pytest.approx(0.5)


def test_ratio_needs_a_second_back_end() -> None:
    assert ratio(Row(CASES[0], 1, {"a": point(1)}), ["a"]) is None


def test_text_has_a_line_a_row() -> None:
    lines = as_text(report()).splitlines()
    assert sum(line.startswith("null-read") for line in lines) == 2
    assert any("2.00" in line and "2.5" in line for line in lines)


def test_json_keeps_every_sample() -> None:
    loaded = json.loads(as_json(report()))
    assert loaded["throughput"][0]["points"]["a"]["iops"] == [1000, 3000, 5000]
    assert loaded["throughput"][0]["target"] == 2.5


def test_chart_is_well_formed() -> None:
    tree = xml.etree.ElementTree.fromstring(as_svg(report()))
    bars = [bar for bar in tree.iter("{http://www.w3.org/2000/svg}rect") if bar.get("x")]
    assert len(bars) == 3 + 6  # the legend's and the rows'


def test_images_have_no_holes(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(4 << 20)
    make_image(path, 4 << 20)
    assert path.stat().st_size == 4 << 20
    assert path.stat().st_blocks * 512 >= 4 << 20


def test_cases_are_chosen_by_name_depth_and_queues() -> None:
    (case,) = chosen_cases(["tmpfs-read"], [7], 2)
    assert (case.name, case.depths, case.queues) == ("tmpfs-read", (7,), 2)


def test_unknown_back_end_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--client", "loadgen", "--backend", "nonsense"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("_qemu")
def test_short_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--case", "null-read", "--case", "cache-read", "--depth", "4", "--seconds", "0.1"]
    arguments += ["--rounds", "1", "--size", "4", "--backend", "qemu:threads", "--backend", "qemu"]
    arguments += [
        "--client",
        "loadgen",
        "--no-resources",
        "--output",
        str(tmp_path),
        "--file-dir",
        str(tmp_path),
    ]
    assert main(arguments) == 0
    assert "cache-read" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "results.json").read_text())["throughput"]) == 2
    assert (tmp_path / "results.svg").exists()


@pytest.mark.usefixtures("_qemu")
def test_allocation_has_a_new_image_each_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--client", "loadgen", "--no-resources", "--output", str(tmp_path)]
    arguments += ["--file-dir", str(tmp_path), "--rounds", "2", "--size", "16", "--seconds", "5"]
    arguments += ["--backend", "qemu:threads", "--backend", "vhostblk"]
    arguments += ["--case", "qcow2-allocate-random", "--case", "qcow2-allocate-sequential"]
    assert main([*arguments, "--depth", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("qcow2-allocate") for line in lines) == 2
    rows = json.loads((tmp_path / "results.json").read_text())["throughput"]
    assert [len(row["points"]["vhostblk"]["iops"]) for row in rows] == [2, 2]
    assert not list(tmp_path.glob("**/*.qcow2"))


def test_runs_that_allocate_end_with_their_image() -> None:
    limits = {case.name: case.limit(64 << 20) for case in CASES if case.limit(64 << 20)}
    assert limits == {
        "qcow2-allocate-sequential": 1024,
        "qcow2-allocate-sequential-4k": 16384,
        "qcow2-allocate-random": 128,
        "qcow2-allocate-random-sparse": 128,
    }


@pytest.mark.usefixtures("_qemu")
def test_short_verification(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--backend", "qemu", "--duration", "0.5", "--size", "4", "--run-seconds", "0.1"]
    assert verify(arguments) == 0
    assert "no mismatch" in capsys.readouterr().out


def test_verification_under_lane_changes(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--switch", "--kill", "--duration", "3", "--size", "4", "--run-seconds", "0.3"]
    assert verify([*arguments, "--rate", "2000"]) == 0
    last = capsys.readouterr().out.splitlines()[-2]
    assert "lane changes" in last


def test_only_vhostblk_changes_lanes(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(["--switch", "--backend", "vhostblk:python", "--size", "4"]) == 1
    assert capsys.readouterr().err.count("\n") == 1

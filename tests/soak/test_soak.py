# SPDX-License-Identifier: Apache-2.0
"""A soak continues where one was stopped, and prints a line with the result of each part."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from soak import __main__ as command
from soak import parts
from soak.__main__ import command_of, main
from soak.parts import PARTS, Part
from tests.cli.process import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A soak of two parts that write down their seeds; slices of ten seconds."""
    monkeypatch.setattr(command, "DIRECTORY", tmp_path / "soak")
    monkeypatch.setattr(parts, "SLICE", 10)
    made = (
        Part(
            "timed",
            f"[ ! -e {tmp_path}/bad ] && echo {{seed}} {{seconds}} | tee -a {tmp_path}/timed",
        ),
        Part("other", f"echo run >> {tmp_path}/other; echo all is well; echo"),
    )
    monkeypatch.setattr(command, "PARTS", made)
    return tmp_path


def slices(place: Path) -> list[tuple[int, int]]:
    lines = (place / "timed").read_text().splitlines()
    return [(int(seed), int(seconds)) for seed, seconds in map(str.split, lines)]


def results(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split(maxsplit=4) for line in capsys.readouterr().out.splitlines()[1:]]


def test_parts_run_in_slices_with_seeds_of_their_own(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--seconds", "25"]) == 0
    assert [seconds for _, seconds in slices(place)] == [9, 8, 8]
    assert len({seed for seed, _ in slices(place)}) == 3
    timed, other = results(capsys)
    assert timed[:4] == ["ok", "timed", "0", "min"]
    assert other == ["ok", "other", "0", "min", "all is well"]


def test_what_failed_is_repeated_and_what_is_done_is_not(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "bad").touch()
    assert main(["--seconds", "20"]) == 1
    failed, other = results(capsys)
    assert failed[:2] == ["FAILED", "timed"]
    assert failed[4] == f"exit status 1, see {place}/soak/timed.log"
    assert other[0] == "ok"
    (place / "bad").unlink()
    assert main(["--seconds", "20"]) == 0
    assert len(slices(place)) == 2
    assert (place / "other").read_text() == "run\n"


def test_the_next_run_has_other_seeds(place: Path) -> None:
    for _ in range(2):
        assert main(["--seconds", "10"]) == 0
    (first, _), (second, _) = slices(place)
    assert first != second
    assert main(["--seconds", "10", "--part", "other"]) == 0
    assert len(slices(place)) == 2
    assert main(["--seconds", "10", "--again"]) == 0
    assert main(["--seconds", "20"]) == 0  # another length
    assert len(slices(place)) == 5


def test_a_part_that_hangs_is_ended(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = Part("timed", f"sleep 1000 & echo $! > {place}/pid; wait # {{seconds}}")
    monkeypatch.setattr(command, "PARTS", (hanging,))
    monkeypatch.setattr(command, "PATIENCE", 0)
    assert main(["--seconds", "1"]) == 1
    assert "hangs" in results(capsys)[0][4]
    stat = Path(f"/proc/{int((place / 'pid').read_text())}/stat")
    wait_until(lambda: not stat.exists() or stat.read_text().split()[2] == "Z")


def test_state_that_is_not_ours_is_an_error(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "soak").mkdir()
    (place / "soak/state.json").write_text("[1]")
    assert main([]) == 2
    assert "state.json is not the state of a soak (remove it)" in capsys.readouterr().err


def test_every_part_is_a_command_line_that_begins(capsys: pytest.CaptureFixture[str]) -> None:
    """Names are unique, and all placeholders in commands exist."""
    assert len({part.name for part in PARTS}) == len(PARTS)
    for part in PARTS:
        assert "{" not in command_of(part, 1, 1)
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(PARTS)


def test_only_one_runs_at_a_time(tmp_path: Path) -> None:
    """`scripts/exclusive` of a copy of the tree, which has a lock of its own."""
    script = tmp_path / "scripts" / "exclusive"
    script.parent.mkdir()
    script.write_bytes((REPOSITORY / "scripts" / "exclusive").read_bytes())
    script.chmod(0o755)
    first = subprocess.Popen([script, "sh", "-c", "echo > begun; exec sleep 1000"])
    try:
        wait_until((tmp_path / "begun").exists)
        with subprocess.Popen(
            [script, sys.executable, "-c", "print('mine')"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as second:
            assert second.stderr is not None
            assert "waiting: another benchmark or soak" in second.stderr.readline()
            os.kill(first.pid, signal.SIGKILL)
            output, _ = second.communicate(timeout=30)
        assert output == "mine\n"
        assert second.returncode == 0
    finally:
        first.kill()
        first.wait()


def test_state_is_whole_at_any_time(place: Path) -> None:
    assert main(["--seconds", "10"]) == 0
    assert json.loads((place / "soak/state.json").read_text())["timed"]["done"] == 1
    assert [path.name for path in (place / "soak").iterdir() if path.suffix == ".new"] == []

# SPDX-License-Identifier: Apache-2.0
"""`python -m soak`: see the package's documentation."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from soak.parts import PARTS
from soak.state import Progress, State, StateError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from soak.parts import Part

ROOT = Path(__file__).parents[1]
DIRECTORY = ROOT / ".cache" / "soak"
STATE = "state.json"
#: Seconds beyond its length after which a slice counts as hanging; untimed parts have more.
PATIENCE = 3600
PATIENCE_UNTIMED = 6 * 3600
#: Distance between the seeds of two slices; a part may increment its seed less often than this.
SEEDS = 100_000


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m soak", description="Run all tests that take hours; continue a stopped run."
    )
    names = [part.name for part in PARTS]
    add = parser.add_argument
    add("--seconds", type=int, default=3600, help="for each timed part (3600)")
    add("--part", action="append", choices=names, help="only this one; may be repeated")
    add("--again", action="store_true", help="begin a new run, even if the last is not done")
    add("--list", action="store_true", help="print the parts and their commands")
    return parser


def command_of(part: Part, seed: int, seconds: int) -> str:
    """Return the command line of a slice."""
    pytest = f"{sys.executable} -m pytest -q -p no:cacheprovider"
    return part.command.format(
        python=sys.executable, pytest=pytest, root=ROOT, seed=seed, seconds=seconds
    )


def run_slice(part: Part, seed: int, seconds: int, log: Path) -> str:
    """Run a slice; return a description of the failure, or an empty string."""
    command = command_of(part, seed, seconds)
    patience = seconds + PATIENCE if part.is_timed else PATIENCE_UNTIMED
    with log.open("ab") as output:
        output.write(f"$ {command}\n".encode())
        output.flush()
        process = subprocess.Popen(
            ["sh", "-c", command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            status = process.wait(patience)
        except subprocess.TimeoutExpired:
            return f"hangs: not done in {patience} seconds"
        finally:
            _end(process)
    return f"exit status {status}" if status else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the processes of a slice, children included."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def run_part(part: Part, state: State, directory: Path) -> bool:
    """Run the remaining slices of a part; print its line, and return whether all succeeded."""
    progress = state.parts[part.name]
    slices = part.slices(progress.length)
    log = directory / f"{part.name}.log"
    wrong = ""
    while progress.done < len(slices) and not wrong:
        seed = _seed(part, progress)
        begun = time.monotonic()
        wrong = run_slice(part, seed, slices[progress.done], log)
        if not wrong:
            progress.done += 1
            progress.seconds += time.monotonic() - begun
            state.save(directory / STATE)
    words = f"{wrong}, see {log}" if wrong else _last_line(log)
    minutes = f"{progress.seconds / 60:.0f} min"
    print(f"{'FAILED' if wrong else 'ok':6} {part.name:16} {minutes:>8}  {words}", flush=True)
    return not wrong


def _seed(part: Part, progress: Progress) -> int:
    """Return the seed of the next slice of a part."""
    number = [each.name for each in PARTS].index(part.name)
    return (progress.run * 10_000 + number * 100 + progress.done) * SEEDS


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:100]


def _begin(
    parts: Sequence[Part], state: State, options: argparse.Namespace, directory: Path
) -> None:
    """Begin new runs: of all parts if all are done, else of parts whose length has changed."""
    found = [state.parts.setdefault(part.name, Progress()) for part in parts]
    all_done = all(
        progress.run and progress.done >= len(part.slices(progress.length))
        for part, progress in zip(parts, found, strict=True)
    )
    for part, progress in zip(parts, found, strict=True):
        if options.again or all_done or progress.length != options.seconds:
            state.parts[part.name] = Progress(progress.run + 1, options.seconds)
            (directory / f"{part.name}.log").unlink(missing_ok=True)


def soak(options: argparse.Namespace, directory: Path) -> int:
    """Run the parts that the options select; return the exit status."""
    parts = [part for part in PARTS if not options.part or part.name in options.part]
    directory.mkdir(parents=True, exist_ok=True)
    state = State.load(directory / STATE)
    _begin(parts, state, options, directory)
    state.save(directory / STATE)
    print(f"logs in {directory}", flush=True)
    well = [run_part(part, state, directory) for part in parts]
    return 0 if all(well) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = make_parser().parse_args(arguments)
    if options.list:
        for part in PARTS:
            print(f"{part.name:16} {part.command}")
        return 0
    try:
        return soak(options, DIRECTORY)
    except (StateError, OSError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("soak: stopped; the next one continues here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

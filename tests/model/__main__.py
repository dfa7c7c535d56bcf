# SPDX-License-Identifier: Apache-2.0
"""Runs programs for hours: `python -m tests.model --seed N --seconds S [--resume FILE]`.

The last line is the result. If a program failed, the lines before it have the shrunk program and
the command that runs it again, and the exit status is 1. With `--resume`, an earlier run is
continued.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

from tests.model.program import Program
from tests.model.run import run
from tests.model.search import Fault, Search
from tests.model.strategies import FOCUSES

#: How many programs are drawn from one seed.
_EXAMPLES = 20
_LANES = ("backend", "python", "express")


def main(arguments: list[str]) -> int:
    """Run programs; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="where to begin")
    parser.add_argument("--seconds", type=float, default=60, help="how long to run")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="keep the place in a file")
    parser.add_argument("--focus", choices=FOCUSES, help="what programs are about; default: all")
    parser.add_argument("--lane", choices=_LANES, help="entry point of requests; default: all")
    parser.add_argument("--keep-going", action="store_true", help="list all kinds of faults")
    parser.add_argument("--program", metavar="JSON", help="run this one only; -: from the input")
    parser.add_argument("--times", type=int, default=1, help="how often to run it")
    options = parser.parse_args(arguments)
    if options.program is not None:
        return _run_one(options.program, options.times)
    return _search(options)


def _run_one(text: str, times: int) -> int:
    program = Program.from_json(sys.stdin.read() if text == "-" else text)
    for number in range(times):
        try:
            run(program)
        except Exception as error:
            print(f"run {number + 1}: {type(error).__name__}: {error}")
            return 1
    print(f"{times} runs: nothing wrong")
    return 0


def _search(options: argparse.Namespace) -> int:
    began = time.monotonic()
    deadline = began + options.seconds
    number, total = options.seed * 1_000_000, 0
    if options.resume is not None and options.resume.exists():
        kept = json.loads(options.resume.read_text())
        if kept["seed"] == options.seed:
            number, total = kept["number"], kept["programs"]
    faults: dict[str, Fault] = {}
    search = Search(deadline=deadline, shrink=not options.keep_going)
    while time.monotonic() < deadline and (not faults or options.keep_going):
        focus = options.focus or FOCUSES[number % len(FOCUSES)]
        fault = search.run(number, _EXAMPLES, focus, options.lane)
        number += 1
        if fault is not None and fault.kind not in faults:
            faults[fault.kind] = fault
            _tell(fault)
        if options.resume is not None:
            place = {"seed": options.seed, "number": number, "programs": total + search.count}
            options.resume.write_text(json.dumps(place))
    total += search.count
    seconds = round(time.monotonic() - began)
    what = "nothing wrong" if not faults else f"{len(faults)} FAULTS"
    print(f"model: seed {options.seed}, {total} programs, {seconds} s: {what}")
    return 1 if faults else 0


def _tell(fault: Fault) -> None:
    print(fault.error)
    print(f"python -m tests.model --program {shlex.quote(fault.program.to_json())}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

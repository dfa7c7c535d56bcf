# SPDX-License-Identifier: Apache-2.0
"""The command line: runs mutations, and reports which ones the tests noticed."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from enum import Enum
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from fuzz.mutations.changes import all_mutations
from fuzz.mutations.mutation import MutationError
from fuzz.mutations.scratch import ROOT, BuildError, Scratch, end_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fuzz.mutations.mutation import Mutation
    from fuzz.mutations.scratch import Outcome

#: Limits in seconds for one test, and for all tests of a mutation.
TEST_LIMIT = 60
RUN_LIMIT = 300

#: The line that pytest prints for a test that fails.
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+\.py(?:::.+?)?)(?: - .*)?$", re.MULTILINE)


class Verdict(Enum):
    """The result of a mutation."""

    NOTICED = "noticed"
    NOT_NOTICED = "NOT noticed"
    #: A test hangs; in CI it fails by its time-out.
    HUNG = "hung"
    #: The mutation doesn't apply, or compile, or its tests can't be run.
    BROKEN = "BROKEN"


class Result(NamedTuple):
    """A mutation that was run; `detail`: the test that failed, or the problem."""

    mutation: Mutation
    verdict: Verdict
    detail: str
    seconds: float

    def __str__(self) -> str:
        detail = f"  {self.detail}" if self.detail else ""
        return f"{self.verdict.value:11} {self.seconds:5.1f} s  {self.mutation.name}{detail}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    chosen = _choose(options.only)
    if options.list:
        for mutation in chosen:
            note = f" (equivalent: {mutation.equivalent})" if mutation.equivalent else ""
            print(f"{mutation.name}: {mutation.file}{note}\n    {mutation.why}")
        return 0
    problems = list(check(chosen))
    for problem in problems:
        print(problem, file=sys.stderr)
    if options.check or problems:
        return 2 if problems else 0
    runnable = [mutation for mutation in chosen if not mutation.equivalent]
    random.Random(options.seed).shuffle(runnable)
    record = None if options.resume is None else Record(options.resume)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    try:
        return run(runnable, record, options.jobs, options.seed, show=options.show)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fuzz.mutations", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", help="only this, or this file's")
    parser.add_argument("--list", action="store_true", help="list the mutations, and run nothing")
    parser.add_argument("--check", action="store_true", help="only check that all still apply")
    parser.add_argument("--resume", metavar="FILE", type=Path, help="continue where FILE says, and "
                        "record results there")  # fmt: skip
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="run N at a time")
    parser.add_argument("--seed", type=int, default=1, help="seed of order and random tests")
    parser.add_argument("--show", action="store_true", help="print the output of pytest")
    return parser


def _choose(names: Iterable[str] | None) -> list[Mutation]:
    """Return the mutations with these names, or in these files; without names, all."""
    everything = all_mutations()
    if names is None:
        return everything
    wanted = set(names)
    known = {each for mutation in everything for each in (mutation.name, mutation.file)}
    if unknown := wanted - known:
        sys.exit(f"no such mutation or file: {', '.join(sorted(unknown))}")
    return [each for each in everything if each.name in wanted or each.file in wanted]


def check(mutations: Iterable[Mutation]) -> Iterable[str]:
    """Yield the problems of mutations: those that don't apply, and tests that don't exist."""
    for mutation in mutations:
        try:
            mutation.apply((ROOT / mutation.file).read_text())
        except (MutationError, OSError) as error:
            yield str(error)
        if not mutation.tests and not mutation.equivalent:
            yield f"{mutation.name}: no tests"
        for test in mutation.tests:
            if not _exists(test):
                yield f"{mutation.name}: no such test: {test}"


def _exists(test: str) -> bool:
    """Return whether the file of a test exists, and has a function of that name."""
    name, *inside = test.split("::")
    path = ROOT / name
    if not inside or not path.is_file():
        return path.exists()
    function = inside[-1].partition("[")[0]
    return re.search(rf"\bdef {re.escape(function)}\(", path.read_text()) is not None


class Record:
    """A file of results, one on each line.

    Mutations that have changed since, and those that were not noticed, are run again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: dict[str, str] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                noted = json.loads(line)
                self._done[noted["key"]] = noted["verdict"]

    def verdict(self, mutation: Mutation) -> Verdict | None:
        """Return the earlier result of a mutation."""
        noted = self._done.get(_key(mutation))
        return None if noted in (None, Verdict.NOT_NOTICED.value) else Verdict(noted)

    def note(self, result: Result) -> None:
        """Add a result."""
        noted = {
            "name": result.mutation.name,
            "verdict": result.verdict.value,
            "detail": result.detail,
            "key": _key(result.mutation),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(noted) + "\n")


def _key(mutation: Mutation) -> str:
    """Return a hash of a mutation and of the file that it changes, as they are now."""
    parts = (mutation.name, mutation.change, *mutation.tests, (ROOT / mutation.file).read_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def run(
    mutations: Sequence[Mutation], record: Record | None, jobs: int, seed: int, *, show: bool
) -> int:
    """Run mutations; return the exit status."""
    began = time.monotonic()
    verdicts = {each: record.verdict(each) if record else None for each in mutations}
    left = [mutation for mutation in mutations if verdicts[mutation] is None]
    print(
        f"{len(left)} mutations, {len(mutations) - len(left)} done before, seed {seed}", flush=True
    )
    if left:
        # The name is short, as tests make sockets there.
        with tempfile.TemporaryDirectory(prefix="mut.") as directory:
            runner = Runner(Path(directory), min(jobs, len(left)), seed, show=show)
            for result in runner.run(left):
                print(result, flush=True)
                verdicts[result.mutation] = result.verdict
                if record is not None and result.verdict is not Verdict.BROKEN:
                    record.note(result)
    return _summarize(verdicts, time.monotonic() - began)


def _summarize(verdicts: dict[Mutation, Verdict | None], seconds: float) -> int:
    counts = {each: list(verdicts.values()).count(each) for each in Verdict}
    listed = ", ".join(f"{count} {each.value}" for each, count in counts.items() if count)
    bad = [
        mutation.name
        for mutation, verdict in verdicts.items()
        if verdict in (Verdict.NOT_NOTICED, Verdict.BROKEN)
    ]
    print(f"mutations: {len(verdicts)} in {seconds:.0f} s: {listed or 'none'}")
    if bad:
        print(f"look at: {' '.join(sorted(bad))}")
    return 1 if bad else 0


class Runner:
    """Runs mutations in `jobs` copies of the tree."""

    def __init__(self, directory: Path, jobs: int, seed: int, *, show: bool) -> None:
        self._seed = seed
        self._show = show
        self._jobs = jobs
        #: Tests that failed with a mutation, and pass without.
        self._sound: set[str] = set()
        self._trees: SimpleQueue[Scratch] = SimpleQueue()
        for number in range(jobs):
            place = directory / str(number)
            place.mkdir()
            self._trees.put(Scratch(place, os.cpu_count() or 1))

    def run(self, mutations: Sequence[Mutation]) -> Iterable[Result]:
        """Run mutations in order, and yield each result as soon as it is known."""
        pool = ThreadPoolExecutor(self._jobs)
        try:
            running = [pool.submit(self._run_one, mutation) for mutation in mutations]
            for each in as_completed(running):
                yield each.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()  # if it was interrupted
            pool.shutdown()

    def _run_one(self, mutation: Mutation) -> Result:
        began = time.monotonic()
        scratch = self._trees.get()
        try:
            scratch.apply(mutation)
            outcome = self._test(scratch, mutation.tests, RUN_LIMIT)
        except (MutationError, BuildError) as error:
            return Result(mutation, Verdict.BROKEN, str(error), 0)
        finally:
            try:
                scratch.restore(mutation)
            finally:
                self._trees.put(scratch)  # or others wait for it for ever
        if self._show:
            print(outcome.output)
        seconds = time.monotonic() - began
        verdict, test = _judge(outcome)
        if verdict in (Verdict.NOTICED, Verdict.HUNG) and test and not self._is_sound(test):
            return Result(mutation, Verdict.BROKEN, f"fails without it, too: {test}", seconds)
        return Result(mutation, verdict, test, seconds)

    def _is_sound(self, test: str) -> bool:
        """Return whether a test passes without mutations. If not, its failure means nothing."""
        if test not in self._sound:
            scratch = self._trees.get()
            try:
                if self._test(scratch, [test], RUN_LIMIT).code == 0:
                    self._sound.add(test)
            finally:
                self._trees.put(scratch)
        return test in self._sound

    def _test(self, scratch: Scratch, tests: Iterable[str], limit: float) -> Outcome:
        options = ("-x", "-q", "--timeout", str(TEST_LIMIT), f"--hypothesis-seed={self._seed}")
        return scratch.run_tests(sys.executable, [*options, *tests], limit)


def _judge(outcome: Outcome) -> tuple[Verdict, str]:
    """Return the verdict of a run of the tests, and the test that failed."""
    failed = _FAILED.search(outcome.output)
    test = failed.group(1) if failed else ""
    if outcome.code is None or "Timeout (>" in outcome.output or "+ Timeout +" in outcome.output:
        return Verdict.HUNG, test
    if outcome.code == 0:
        return Verdict.NOT_NOTICED, ""
    # A crash of the interpreter counts as noticed, too.
    if outcome.code == 1 or outcome.code < 0:
        return Verdict.NOTICED, test
    lines = [line for line in outcome.output.splitlines() if line.startswith("E ")]
    return Verdict.BROKEN, f"pytest ended with {outcome.code}: {' '.join(lines[-1:])}"

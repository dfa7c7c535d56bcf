# SPDX-License-Identifier: Apache-2.0
"""Running random scripts, one for each seed, and keeping those that show a difference."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.differential import declared, known
from tests.differential.comparison import Finding, Pair, scratch
from tests.differential.generator import Generator
from tests.differential.script import parse
from tests.differential.shrink import shrink

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.differential.session import Outcome
    from tests.qmp_exports.daemons import Program

#: Lengths of scripts, in actions.
LENGTHS = (5, 10, 20, 40)
HANGING = (["requests don't end"], ["no answer to a connection"])


@dataclass(slots=True)
class Result:
    """The result of one random script."""

    lines: list[str] = field(default_factory=list)
    #: The difference; None: there is none.
    finding: Finding | None = None
    #: Why the script ended early: an expected difference after which steps can't be compared.
    cut: str = ""

    @property
    def signature(self) -> str:
        """The kind of the difference: its text without names and numbers."""
        return signature(self.finding) if self.finding else ""


def signature(finding: Finding) -> str:
    """Return the kind of a finding."""
    command = finding.step.command if finding.step else finding.where
    return " ".join([command, _kind(finding.ours), "/", _kind(finding.theirs)])


def _kind(outcome: Any) -> str:
    if isinstance(outcome, dict) and "error" in outcome:
        text = str(outcome["error"]["desc"])
    elif isinstance(outcome, dict) and "return" in outcome:
        return "return"
    elif isinstance(outcome, dict):
        text = " ".join(outcome)
    else:
        text = " ".join(outcome)
    return re.sub(r"'[^']*'|\b[a-z]?\d\w*\b|0x\w+", "_", text)[:200]


def play(lines: Iterable[str], peer: Program, generator: Generator | None = None) -> Result:
    """Run lines, and those that the generator adds, up to the first difference."""
    result = Result()
    with scratch() as directory, Pair(peer, directory) as pair:
        for line in lines:
            pending = [line]
            while pending:
                text = pending.pop(0)
                result.lines.append(text)
                theirs, goes_on = _step(pair, result, text)
                if not goes_on:
                    return result
                if generator is not None:
                    pending += generator.learn(text, theirs)
        for finding in pair.finish():
            result.finding = result.finding or finding
    return result


def _step(pair: Pair, result: Result, text: str) -> tuple[Outcome, bool]:
    """Run a line on both; return QEMU's outcome, and whether later lines can be compared."""
    (step,) = parse(text).steps
    ours, theirs = pair.run(step)
    if ours == theirs:
        return theirs, not pair.ours.died
    version = pair.peer.version
    rules = (*declared.RULES, *known.RULES)
    if pair.theirs.died and not pair.ours.died:
        words = pair.theirs.output().strip().splitlines()[-1:] or declared.said(theirs).split("\n")
        result.cut = f"QEMU dies: {words[0][-200:]}"
    elif theirs in HANGING and ours not in HANGING:
        result.cut = "QEMU hangs"
    elif why := declared.expected(rules, version, step.command, ours, theirs):
        if not why.cuts:
            return theirs, True
        result.cut = why.reason
    else:
        result.finding = Finding(text, "outcomes differ", ours, theirs, step)
    return theirs, False


def _written(generator: Generator) -> Iterator[str]:
    yield from generator.begin()
    for _ in range(generator.chance.choice(LENGTHS)):
        yield from generator.go_on()
    yield from generator.end()


def run_seed(seed: int, peer: Program) -> Result:
    """Run the script of one seed."""
    generator = Generator(seed)
    return play(_written(generator), peer, generator)


def search(peer: Program, seed: int, seconds: float, output: Path) -> int:
    """Run scripts until time is up; return the number of kinds of differences.

    For each kind, the shortest script that shows it is kept in `output`.
    """
    end = time.monotonic() + seconds
    found: dict[str, Path] = {}
    scripts = cut = 0
    while time.monotonic() < end:
        result = run_seed(seed, peer)
        scripts += 1
        cut += bool(result.cut)
        kind = result.signature
        if result.finding is not None and kind not in found:
            print(f"seed {seed}: {result.finding}", flush=True)
            found[kind] = keep(result, seed, peer, output)
            print(f"kept: {found[kind]}", flush=True)
        seed += 1
    what = f"{scripts} scripts, {cut} cut short, {len(found)} kinds of differences"
    print(f"{what}; next: --seed {seed}")
    return len(found)


def keep(result: Result, seed: int, peer: Program, output: Path) -> Path:
    """Shrink a script and write it to a file."""
    assert result.finding is not None
    kind = result.signature

    def differs(lines: list[str]) -> bool:
        return play(lines, peer).signature == kind

    lines = shrink(result.lines, differs)
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"seed-{seed}.script"
    said = "".join(f"# {line}\n" for line in str(result.finding).splitlines())
    path.write_text(f"# Found by seed {seed}.\n{said}" + "".join(f"{line}\n" for line in lines))
    return path

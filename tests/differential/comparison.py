# SPDX-License-Identifier: Apache-2.0
"""Running the same steps in two sessions, and comparing the outcomes."""

from __future__ import annotations

import difflib
import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.differential import declared, known
from tests.differential.differences import problem
from tests.differential.session import Session, make_tools
from tests.qmp_exports.daemons import VHOSTBLK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from tests.differential.script import Script, Step
    from tests.differential.session import Outcome
    from tests.qmp_exports.daemons import Program

#: Members of an event's data that name its subject.
_SUBJECTS = ("id", "device", "node-name", "reference", "job")


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference or another fault, and its place."""

    where: str
    problem: str
    ours: Any
    theirs: Any
    step: Step | None = None

    def __str__(self) -> str:
        """Return a text for the user."""
        lines = [f"{self.where}", f"  {self.problem}"]
        return "\n".join([*lines, *(f"  {line}" for line in _difference(self.ours, self.theirs))])


class Pair:
    """vhostblk and a peer, each in a directory of its own, at the same time."""

    def __init__(self, peer: Program, directory: Path) -> None:
        tools = make_tools(directory / "tools")
        self.peer = peer
        self.ours = Session(VHOSTBLK, directory / "ours", tools)
        self.theirs = Session(peer, directory / "theirs", tools)
        self._both = ThreadPoolExecutor(2)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._both.shutdown()
        self.ours.close()
        self.theirs.close()

    def run(self, step: Step) -> tuple[Outcome, Outcome]:
        """Run a step on both; return the outcomes: ours, theirs."""
        ours = self._both.submit(self.ours.run, step)
        theirs = self._both.submit(self.theirs.run, step)
        return ours.result(), theirs.result()

    def finish(self, but_events: str = "") -> list[Finding]:
        """Shut down both daemons; return the differences in that, and in events."""
        ends = self._both.submit(self.ours.finish), self._both.submit(self.theirs.finish)
        ours, theirs = (end.result() for end in ends)
        found = []
        if wrong := problem(None, self.peer.version, ours, theirs):
            found.append(Finding("at the end", wrong, ours, theirs))
        our_events, their_events = _grouped(self.ours.events), _grouped(self.theirs.events)
        difference = declared.find(but_events) if but_events else None
        if wrong := problem(difference, self.peer.version, our_events, their_events):
            found.append(Finding("events", wrong, our_events, their_events))
        if "Traceback (most recent call last)" in (said := self.ours.output()):
            found.append(Finding("vhostblk's log", "a mistake in vhostblk", said.splitlines(), []))
        return found


def compare(script: Script, peer: Program) -> Iterator[Finding | tuple[Step, Outcome, Outcome]]:
    """Run a script on both; yield the outcomes of each step, and the findings."""
    with scratch() as directory, Pair(peer, directory) as pair:
        for step in script.steps:
            ours, theirs = pair.run(step)
            yield step, ours, theirs
            if wrong := _problem(step, peer.version, ours, theirs):
                yield Finding(
                    f"{script.name}:{step.number}: {step.text}", wrong, ours, theirs, step
                )
        yield from pair.finish(script.but_events)


def _problem(step: Step, version: int, ours: Outcome, theirs: Outcome) -> str:
    """Return the problem with the two outcomes of a step, or an empty string."""
    if step.but:
        return problem(declared.find(step.but), version, ours, theirs)
    wrong = problem(None, version, ours, theirs)
    if not wrong or declared.expected(declared.RULES, version, step.command, ours, theirs):
        return ""
    rules = (*declared.RULES, *known.RULES)
    if why := declared.expected(rules, version, step.command, ours, theirs):
        return f"known, and to go: {why.reason}"
    return wrong


def findings(script: Script, peer: Program) -> list[Finding]:
    """Run a script on both; return the findings."""
    return [each for each in compare(script, peer) if isinstance(each, Finding)]


class scratch:  # noqa: N801 -- used as a function
    """A directory on a disk that is removed afterwards; /tmp may be a tmpfs."""

    def __enter__(self) -> Path:
        self._path = Path(tempfile.mkdtemp(prefix="diff-", dir="/var/tmp"))
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


def _grouped(events: Iterable[tuple[str, Any]]) -> dict[str, list[Any]]:
    """Group events by kind and subject, as those of different subjects come in any order."""
    groups: dict[str, list[Any]] = {}
    for name, data in events:
        subjects = [str(data[key]) for key in _SUBJECTS if isinstance(data, dict) and key in data]
        groups.setdefault(" ".join([name, *subjects]), []).append(data)
    ordered: dict[str, list[Any]] = json.loads(json.dumps(groups, sort_keys=True))
    return ordered


def _difference(ours: Any, theirs: Any) -> list[str]:
    """Return the differences as lines of text."""
    our, their = _lines(ours), _lines(theirs)
    if max(len(our), len(their)) <= 1:
        return [f"ours:   {' '.join(our)}", f"theirs: {' '.join(their)}"]
    shown = difflib.unified_diff(their, our, "theirs", "ours", lineterm="", n=2)
    return list(shown)


def _lines(outcome: Any) -> list[str]:
    if isinstance(outcome, list) and all(isinstance(line, str) for line in outcome):
        return outcome
    text = json.dumps(outcome)
    return [text] if len(text) < 300 else json.dumps(outcome, indent=1).splitlines()

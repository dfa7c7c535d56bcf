# SPDX-License-Identifier: Apache-2.0
"""The parts of a soak.

In commands `{python}` is the interpreter, `{pytest}` pytest, `{root}` the tree, `{seed}` a number
that no other slice has, and `{seconds}` the length of the slice. A part without `{seconds}` has
one slice.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Longest slice, in seconds. When a soak is stopped, at most one slice has to be repeated.
SLICE = 600


@dataclass(frozen=True, slots=True)
class Part:
    """A command line, run by the shell in the root of the tree."""

    name: str
    command: str

    @property
    def is_timed(self) -> bool:
        """Whether it runs for a given time."""
        return "{seconds}" in self.command

    def slices(self, seconds: int) -> list[int]:
        """Return the lengths of its slices."""
        if not self.is_timed:
            return [0]
        count = -(-seconds // SLICE)
        return [seconds // count + (number < seconds % count) for number in range(count)]


#: The parts, in the order in which they run.
PARTS = (
    Part("model", "{python} -m tests.model --seed {seed} --seconds {seconds}"),
    Part(
        "differential",
        "{python} -m tests.differential --random --seed {seed} --seconds {seconds}",
    ),
    Part("pr-helper", "{python} -m tests.pr.fuzz --seed {seed} --seconds {seconds}"),
    Part("qcow2-images", "{python} -m integration.qcow2.fuzz {seconds}"),
    # Fuzzers write their findings to the working directory.
    Part("fuzz-engine", "cd .cache/soak && {root}/fuzz/run {seconds}"),
    Part("fuzz-python", "cd .cache/soak && PYTHON={python} {root}/fuzz/run-python {seconds}"),
    Part("mutations", "{python} -m fuzz.mutations"),
    Part("load", "{python} -m benchmarks.verify --duration {seconds} --seed {seed}"),
    Part("guest-soak", "{pytest} integration/test_soak.py --soak 10000"),
    Part("guest-kills", "{pytest} integration/test_crash.py --kills 100"),
    Part("guest-migrations", "{pytest} integration/test_migration.py --migrations 20"),
    Part("guest-handovers", "{pytest} integration/test_handover.py --handovers 100"),
    Part("guest-debian", "{pytest} integration/test_root_disk.py --debian"),
    Part(
        "guest-nested-pr",
        "{python} -m peers multipath && {pytest} integration/test_nested_reservations.py --nested",
    ),
    Part("guest-zones", "{python} -m peers forky && {pytest} integration/test_zoned.py"),
)

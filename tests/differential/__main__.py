# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.differential`; see the package's documentation."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.differential.comparison import Finding, compare
from tests.differential.random_scripts import search
from tests.differential.script import ScriptError, parse
from tests.qmp_exports.daemons import QEMU_7, QEMU_10, VHOSTBLK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.differential.script import Script
    from tests.qmp_exports.daemons import Program

OUTPUT = Path(__file__).parents[2] / ".cache" / "differential"
PEERS = {program.name: program for program in (QEMU_10, QEMU_7, VHOSTBLK)}


def make_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.differential",
        description="Compare vhostblk with QEMU's storage daemon, by scripts.",
    )
    add = parser.add_argument
    add("script", nargs="*", type=Path, help="a file in the format of tests/differential")
    add("--peer", choices=[*PEERS], default=QEMU_10.name, help="what vhostblk is compared with")
    add("--random", action="store_true", help="run random scripts, and keep those with differences")
    add("--seed", type=int, default=1, help="seed of the first random script; it is incremented")
    add("--seconds", type=float, default=60, help="how long to run")
    add("--output", type=Path, default=OUTPUT, help="directory for scripts that show a difference")
    add("--show", action="store_true", help="print all outcomes, even if they are the same")
    return parser


def run_script(script: Script, peer: Program, *, show: bool) -> bool:
    """Run a script and print the differences; return whether there are none."""
    well = True
    for each in compare(script, peer):
        if isinstance(each, Finding):
            well = False
            print(each)
        elif show:
            step, ours, theirs = each
            print(step.text)
            both = [("", ours)] if ours == theirs else [("ours: ", ours), ("theirs: ", theirs)]
            for who, outcome in both:
                lines = outcome if isinstance(outcome, list) else [json.dumps(outcome)]
                print("\n".join(f"    {who}{line}" for line in lines))
    return well


def main(arguments: Sequence[str] | None = None) -> int:
    """Run scripts; return the exit status: 0: no differences, 1: some, 2: could not compare."""
    options = make_parser().parse_args(arguments)
    peer = PEERS[options.peer]
    if not peer.available:
        print(f"{peer.name} is not there (run: make roots)", file=sys.stderr)
        return 2
    status = 0
    if options.random and search(peer, options.seed, options.seconds, options.output):
        status = 1
    for path in options.script:
        try:
            well = run_script(parse(path.read_text(), str(path)), peer, show=options.show)
        except (OSError, ScriptError) as error:
            print(f"{path}: {error}" if isinstance(error, OSError) else error, file=sys.stderr)
            return 2
        print(f"{'the same' if well else 'DIFFERENT'}: {path}")
        status = status if well else 1
    return status


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""`python -m peers SUITE…`: make Debian roots that don't exist yet."""

from __future__ import annotations

import argparse
import sys

from peers.debian import ROOTS, RootError, make_root


def main() -> int:
    """Make the roots; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m peers", description=__doc__)
    parser.add_argument("suite", nargs="*", help=" or ".join(ROOTS))
    suites = parser.parse_args().suite
    for suite in suites:
        if suite not in ROOTS:
            parser.error(f"no root is called {suite!r}")
    try:
        for suite in suites:
            make_root(ROOTS[suite])
    except (RootError, OSError) as error:
        print(f"peers: {error}", file=sys.stderr)
        print("peers: 'make ROOTS= TARGET' works without it, and skips tests", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

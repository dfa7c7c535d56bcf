# SPDX-License-Identifier: Apache-2.0
"""Command line: that of the QEMU storage daemon, and a short form for one image.

`vhostblk-pr-helper` uses some modules of this package, and must not load the daemon's for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `cli.program`."""
    from vhostblk.cli import program

    return program.main(argv)

# SPDX-License-Identifier: Apache-2.0
"""What ends the command with one line on stderr."""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class UsageError(VhostblkError):
    """The command line can't be understood."""


class StartupError(VhostblkError):
    """The process can't take the form asked for (process ID file, daemonizing)."""

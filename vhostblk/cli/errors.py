# SPDX-License-Identifier: Apache-2.0
"""Errors that end the command with one line on stderr."""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class UsageError(VhostblkError):
    """The command line is wrong."""


class StartupError(VhostblkError):
    """The process can't be set up as asked for (process ID file, daemonizing)."""

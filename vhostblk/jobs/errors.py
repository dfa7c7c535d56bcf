# SPDX-License-Identifier: Apache-2.0
"""The error family of jobs."""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class JobError(VhostblkError):
    """A job can't be made, found, or asked for that."""


class JobCancelled(Exception):  # noqa: N818 (no failure: somebody wanted it)
    """Raised inside a job that has been cancelled, at its next pause point."""

# SPDX-License-Identifier: Apache-2.0
"""Errors of jobs."""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class JobError(VhostblkError):
    """A job can't be created or found, or doesn't accept a verb."""


class JobCancelled(Exception):  # noqa: N818 (not an error)
    """Raised inside a cancelled job, at its next pause point."""

# SPDX-License-Identifier: Apache-2.0
"""Errors of hand-overs."""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class HandoverError(VhostblkError):
    """The hand-over is not possible, or has failed."""


class RefusedError(HandoverError):
    """The other process has reported a failure, and has stopped."""

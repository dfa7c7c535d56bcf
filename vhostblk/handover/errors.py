# SPDX-License-Identifier: Apache-2.0
"""Errors of hand-overs."""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class HandoverError(VhostblkError):
    """The hand-over can't be, or has come to nothing."""


class RefusedError(HandoverError):
    """The other process has said that it can't, and does nothing more."""

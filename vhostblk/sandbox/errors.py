# SPDX-License-Identifier: Apache-2.0
"""Errors of the sandbox."""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class SandboxError(VhostblkError):
    """What the user asked to be given up can't be."""

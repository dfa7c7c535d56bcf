# SPDX-License-Identifier: Apache-2.0
"""Errors of the sandbox."""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class SandboxError(VhostblkError):
    """A restriction that the user has asked for is not possible."""

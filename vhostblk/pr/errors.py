# SPDX-License-Identifier: Apache-2.0
"""Errors of the helper."""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class HelperError(VhostblkError):
    """The helper can't start as asked to."""

# SPDX-License-Identifier: Apache-2.0
"""Sockets that can't be had."""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class ListenError(VhostblkError):
    """The listening socket can't be had; the user's mistake, told at start-up."""

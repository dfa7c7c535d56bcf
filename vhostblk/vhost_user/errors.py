# SPDX-License-Identifier: Apache-2.0
"""The transport's error family: whose fault it was decides what happens to the connection."""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class VhostUserError(VhostblkError):
    """The front-end asked for something invalid; answered with a failure, or by disconnecting."""


class ProtocolError(VhostUserError):
    """The byte stream can no longer be understood; always ends the connection."""

# SPDX-License-Identifier: Apache-2.0
"""Sockets that can't be had."""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class SocketError(VhostblkError):
    """An address makes no sense, or nobody can listen at it or connect to it."""


class ListenError(SocketError):
    """The listening socket can't be had; the user's mistake, told at start-up."""


class AuthorizationError(VhostblkError):
    """Whether a peer is allowed can't be found out, so it is not."""


class WebSocketError(VhostblkError):
    """A client breaks the rules of WebSocket; only its own connection is concerned."""


class HandshakeError(VhostblkError):
    """A connection ends, or takes too long, before it is ready for use."""

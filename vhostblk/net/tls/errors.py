# SPDX-License-Identifier: Apache-2.0
"""TLS that can't be had."""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class CredentialsError(VhostblkError):
    """Credentials can't be loaded, or are of no use."""


class TlsError(VhostblkError):
    """A session has failed; only its own connection is concerned."""

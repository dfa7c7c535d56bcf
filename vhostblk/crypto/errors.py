# SPDX-License-Identifier: Apache-2.0
"""Secrets that can't be read, decoded or found."""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class SecretError(VhostblkError):
    """A secret can't be had. The message never has any part of its value."""


class LibraryError(VhostblkError):
    """A library that is opened at run time is not installed, or too old."""

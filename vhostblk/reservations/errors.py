# SPDX-License-Identifier: Apache-2.0
"""Errors of the protocol between a helper and its clients."""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class ProtocolError(VhostblkError):
    """The other side broke the protocol; its connection is closed."""


class FeatureError(ProtocolError):
    """The client asked for a feature that was not offered."""


class DescriptorError(ProtocolError):
    """A request came with no descriptor, or with more than one."""


class CommandError(ProtocolError):
    """The command is no PERSISTENT RESERVE IN or OUT, or its data are too long."""


class CutShortError(ProtocolError):
    """The connection was closed in the middle of a message."""

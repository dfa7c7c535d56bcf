# SPDX-License-Identifier: Apache-2.0
"""The error family of the transport.

`str(error)` is only the reason; the server adds the names of export and message.
"""

from __future__ import annotations

from vhostblk.virtqueue.errors import SetupError


class VhostUserError(SetupError):
    """A message is invalid; the reply is a failure, or the front-end is disconnected."""


class ProtocolError(VhostUserError):
    """The byte stream can't be decoded any more; this always ends the connection."""


class UnknownRequestError(VhostUserError):
    """The message is unknown, or its protocol feature was not offered."""


class PayloadSizeError(VhostUserError):
    """The payload has the wrong length for its message."""


class DescriptorError(VhostUserError):
    """File descriptors are missing, too many, or of the wrong type."""


class FeatureError(VhostUserError):
    """Features were acknowledged but not offered, or needed but not acknowledged."""


class VringIndexError(VhostUserError):
    """The vring doesn't exist."""


class VringStateError(VhostUserError):
    """A vring's size, addresses or base are invalid, or not set when it starts."""


class MemoryTableError(VhostUserError):
    """A memory table, or one region of it, is not well-formed."""


class DeviceStateError(VhostUserError):
    """The device's state can't be transferred as requested, or is invalid."""


class PostcopyError(VhostUserError):
    """A message of a post-copy migration is out of order."""


class ConfigAccessError(VhostUserError):
    """An access to configuration space is out of range, or has unknown flags."""

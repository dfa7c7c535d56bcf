# SPDX-License-Identifier: Apache-2.0
"""The transport's error family: whose fault it was decides what happens to the connection.

`str(error)` is the reason alone; the server puts the export's and the message's name before it.
"""

from __future__ import annotations

from vhostblk.virtqueue.errors import SetupError


class VhostUserError(SetupError):
    """The front-end asked for something invalid; answered with a failure, or by disconnecting."""


class ProtocolError(VhostUserError):
    """The byte stream can no longer be understood; always ends the connection."""


class UnknownRequestError(VhostUserError):
    """No such message, or one whose protocol feature was not offered."""


class PayloadSizeError(VhostUserError):
    """The payload is not as long as its message's has to be."""


class DescriptorError(VhostUserError):
    """File descriptors are missing, too many, or of the wrong type."""


class FeatureError(VhostUserError):
    """Features that were not offered, or are needed and were not acknowledged."""


class VringIndexError(VhostUserError):
    """The vring doesn't exist."""


class VringStateError(VhostUserError):
    """A vring's size, addresses or base are invalid, or not set when it is to start."""


class MemoryTableError(VhostUserError):
    """A memory table, or one region of it, is not well-formed."""


class DeviceStateError(VhostUserError):
    """The device's state can't be transferred as asked, or was not what it should be."""


class PostcopyError(VhostUserError):
    """A message of a post-copy migration comes out of order."""


class ConfigAccessError(VhostUserError):
    """Configuration space was accessed where there is none, or with unknown flags."""

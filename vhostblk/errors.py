# SPDX-License-Identifier: Apache-2.0
"""The root of every error that a user is told of.

Each layer has one family below `VhostblkError`. `str(error)` is one line, complete in itself: it
names the option, the file and the reason, because the command line, QMP and the logs show nothing
else.
"""

from __future__ import annotations


class VhostblkError(Exception):
    """Something that the user (or a peer) asked for can't be done."""

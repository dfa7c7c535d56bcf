# SPDX-License-Identifier: Apache-2.0
"""Errors in options, with QEMU's messages."""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class OptionError(VhostblkError):
    """Options can't be parsed, or don't match their type."""


class BadValueError(OptionError):
    """An enumeration or a union has no such value."""


class HelpRequestedError(VhostblkError):
    """The options contain `help` or `?`; not an error. `options` has the other options."""

    def __init__(self, options: dict[str, object]) -> None:
        super().__init__("Help is not available for this option")
        self.options = options

# SPDX-License-Identifier: Apache-2.0
"""What is wrong with options, in the words that QEMU uses."""

from __future__ import annotations

from vhostblk.errors import VhostblkError


class OptionError(VhostblkError):
    """Options can't be parsed, or don't fit the type that they are for."""


class BadValueError(OptionError):
    """An enumeration or a union has no such value."""


class HelpRequestedError(VhostblkError):
    """Not an error: the options contain `help` or `?`. `options` holds the others."""

    def __init__(self, options: dict[str, object]) -> None:
        super().__init__("Help is not available for this option")
        self.options = options

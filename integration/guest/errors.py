# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in the harness, as distinct from what a test asserts."""

from __future__ import annotations


class HarnessError(Exception):
    """Something that the tests need is missing on this machine, or did not start."""


class GuestError(Exception):
    """The guest died, hung, or failed a step; the message ends with what it said last."""

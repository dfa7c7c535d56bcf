# SPDX-License-Identifier: Apache-2.0
"""What is asked of which version of Landlock."""

from __future__ import annotations

import struct

import pytest

from vhostblk.sandbox.landlock import ruleset

REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
FIRST = (1 << 13) - 1


@pytest.mark.parametrize(
    ("version", "rights", "words"),
    [
        (1, FIRST, 1),
        (2, FIRST | REFER, 1),
        (3, FIRST | REFER | TRUNCATE, 1),
        (4, FIRST | REFER | TRUNCATE, 2),
        (5, FIRST | REFER | TRUNCATE | IOCTL_DEV, 2),
        (6, FIRST | REFER | TRUNCATE | IOCTL_DEV, 3),
        (99, FIRST | REFER | TRUNCATE | IOCTL_DEV, 3),
    ],
)
def test_only_what_the_version_knows_is_asked_for(version: int, rights: int, words: int) -> None:
    described, found = ruleset(version)
    assert found == rights
    assert len(described) == 8 * words
    assert struct.unpack_from("=Q", described)[0] == rights

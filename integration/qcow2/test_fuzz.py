# SPDX-License-Identifier: Apache-2.0
"""Images with flipped bits and hostile numbers: clear errors, at bounded time and memory.

Whatever an image says, opening it fails with one error, or requests do; nothing else is raised,
nothing hangs, and the file does not grow beyond reason.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from integration.qcow2.fuzz import FORMS, make_seed, mutate, try_image
from vhostblk.block.graph.permissions import Perm

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 30


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("perm", [Perm.CONSISTENT_READ, Perm.CONSISTENT_READ | Perm.WRITE])
def test_hostile_images_end_in_errors(tmp_path: Path, form: str, perm: Perm) -> None:
    path = tmp_path / "disk.qcow2"
    good = make_seed(path, form)
    rng = random.Random(f"{form} {perm}")
    for _ in range(ROUNDS):
        try_image(path, mutate(good, rng), rng, perm)

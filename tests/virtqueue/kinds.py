# SPDX-License-Identifier: Apache-2.0
"""Runs tests on both kinds of rings: what uses a queue can't tell them apart.

A test module that asks for `ring_kind` gets rings of that kind from the helpers that make drivers
and devices; all others get split ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.frontend.packed import PackedDriverRing
from tests.frontend.ring import DriverRing
from vhostblk.virtio_blk.features import Feature
from vhostblk.virtqueue.packed import PackedQueue
from vhostblk.virtqueue.split import SplitQueue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostblk.virtqueue.ring import Ring


class RingKind(NamedTuple):
    """Both sides of a ring, and the features that choose it."""

    driver: type[DriverRing]
    device: type[Ring]
    features: int

    @property
    def packed(self) -> bool:
        return self.device is PackedQueue


KINDS = {
    "split": RingKind(DriverRing, SplitQueue, 0),
    "packed": RingKind(PackedDriverRing, PackedQueue, Feature.RING_PACKED.mask),
}

_chosen = ["split"]


def current_kind() -> RingKind:
    """Return the kind that the running test has to do with."""
    return KINDS[_chosen[-1]]


@pytest.fixture(params=KINDS)
def ring_kind(request: pytest.FixtureRequest) -> Iterator[RingKind]:
    """Choose a kind."""
    _chosen.append(request.param)
    yield current_kind()
    _chosen.pop()

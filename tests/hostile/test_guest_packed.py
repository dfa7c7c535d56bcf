# SPDX-License-Identifier: Apache-2.0
"""Hostile guests with packed rings: the cases of the guest's list that are about rings."""

from __future__ import annotations

import os
import select
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from tests.cli.process import wait_until
from tests.frontend.blk import PACKED_FEATURES
from tests.frontend.connection import make_eventfd
from tests.frontend.layout.virtqueue import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    PACKED_DESC,
    PACKED_F_AVAIL,
    PACKED_F_USED,
)
from tests.frontend.packed import PackedDriverRing
from tests.frontend.ring import Segment
from tests.hostile.test_guest import (
    ADJACENT,
    BAD,
    FINE,
    FLUSH,
    HOLE,
    IN,
    UNSET,
    Answer,
    Guest,
    guest,
)
from tests.virtio_blk.support import header

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.frontend.scene import Scene

_WRITE = DESC_F_WRITE


def ring_of(g: Guest) -> PackedDriverRing:
    assert isinstance(g.ring, PackedDriverRing)
    return g.ring


def run(g: Guest, *rows: tuple[int, int, int]) -> Answer:
    """Run the chain of these descriptors: address, length, flags."""
    ring = ring_of(g)
    g.status  # noqa: B018 -- unset it
    ring.put(0, rows)
    ring._free_ids.remove(0)
    ring._lengths[0] = len(rows)
    ring._free_count -= len(rows)
    return g.answered(0)


def table(g: Guest, *rows: tuple[int, int, int]) -> int:
    """Write an indirect table; return its address."""
    return g.put(b"".join(struct.pack("<QIHH", addr, size, 9, flags) for addr, size, flags in rows))


def _endless(ring: PackedDriverRing) -> None:
    ring.put(1, [(0, 0, 0)] * ring.size)
    ring.desc["flags"] |= DESC_F_NEXT
    ring._heads = [(index, flags | DESC_F_NEXT) for index, flags in ring._heads]


def _out_of_range(ring: PackedDriverRing) -> None:
    ring.make_available(ring.size)


@pytest.mark.parametrize("breaks", [_endless, _out_of_range])
def test_1_7_rings_that_can_not_be_are_broken_alone(
    scene: Scene, breaks: Callable[[PackedDriverRing], None]
) -> None:
    """A chain without an end, a buffer id out of range: the guest's other queue goes on."""
    with guest(scene, features=PACKED_FEATURES) as g:
        error = make_eventfd()
        g.driver.connection.set_vring_err(0, error)
        breaks(ring_of(g))
        g.ring.kick(force=True)
        assert select.select([error], [], [], 30)[0]
        os.close(error)
        assert g.driver.read(0, 4096, queue=1) == bytes(4096)


def test_7_an_id_made_available_twice_breaks_its_ring_alone(scene: Scene) -> None:
    """Unless it was used in between, then it is served twice: the engine is that fast."""
    with guest(scene, features=PACKED_FEATURES) as g:
        error = make_eventfd()
        g.driver.connection.set_vring_err(0, error)
        ring = ring_of(g)
        for _ in range(2):
            ring.put(3, [(g.put(header(FLUSH)), 16, 0), (g.status_addr, 1, _WRITE)])
        ring.kick(force=True)
        used = PACKED_F_AVAIL | PACKED_F_USED
        wait_until(
            lambda: (
                bool(select.select([error], [], [], 0)[0])
                or int(ring.desc["flags"][2]) & used == used
            )
        )
        os.close(error)
        assert g.driver.read(0, 4096, queue=1) == bytes(4096)


def test_2_places_wrap_around(scene: Scene) -> None:
    with guest(scene, features=PACKED_FEATURES, start=250) as g:
        for _ in range(300):
            g.fine()


def test_3_indirect_tables_that_can_not_be(scene: Scene) -> None:
    with guest(scene, features=PACKED_FEATURES) as g:
        rows = (g.put(header(FLUSH)), 16, 0), (g.status_addr, 1, _WRITE)
        fine = table(g, *rows)
        across = ADJACENT - 16
        g.memory.write(across, g.memory.read(fine, 16))
        g.memory.write(ADJACENT, g.memory.read(fine + 16, 16))
        for addr, length in (
            (fine, 0),
            (fine, 17),
            (fine, 1025 * 16),
            (fine, 0xFFFF_FFF0),
            (across, 32),
            (HOLE, 32),
            ((1 << 64) - 16, 32),
        ):
            # No status byte can be found: used, with nothing written.
            assert run(g, (addr, length, DESC_F_INDIRECT)) == Answer(0, UNSET), (addr, length)
        assert run(g, (fine, 32, DESC_F_INDIRECT | _WRITE)) == Answer(1, FINE)
        # Flags but WRITE mean nothing in a table.
        other = table(g, (rows[0][0], 16, DESC_F_NEXT | DESC_F_INDIRECT), rows[1])
        assert run(g, (other, 32, DESC_F_INDIRECT)) == Answer(1, FINE)
        # A table is a chain by itself; what comes before it may take a status.
        assert run(g, rows[0], (fine, 32, DESC_F_INDIRECT)) == Answer(0, UNSET)
        assert run(g, (g.status_addr, 1, _WRITE), (fine, 32, DESC_F_INDIRECT)) == Answer(1, BAD)
        g.fine()


def test_5_descriptors_headers_and_tables_changed_while_they_are_used(scene: Scene) -> None:
    """Every request is answered, whichever of the contents it was taken with."""
    with guest(scene, features=PACKED_FEATURES) as g:
        stop = threading.Event()
        head, data = g.put(header(IN)), g.put(bytes(512))
        good = [(head, 16, 0), (data, 512, _WRITE), (g.status_addr, 1, _WRITE)]
        where = table(g, *good)
        rows = g.memory.view(where, 48).view(PACKED_DESC)
        types = g.memory.view(head, 4).view("<u4")

        def change() -> None:
            while not stop.is_set():
                for place, (addr, length, flags) in enumerate(good):
                    rows[place] = (HOLE, 0xFFFF_FFFF, 9, 0xFFFF)
                    types[0] = 0x1234
                    rows[place] = (addr, length, 9, flags)
                    types[0] = IN

        thread = threading.Thread(target=change)
        thread.start()
        try:
            for _ in range(50):
                assert run(g, (where, 48, DESC_F_INDIRECT)).length in (0, 1, 513)
        finally:
            stop.set()
            thread.join()
        g.fine()


def test_13_data_over_the_ring(scene: Scene) -> None:
    """Zeroes are read over the descriptors, which are free again thereby, or not."""
    with guest(scene, features=PACKED_FEATURES) as g:
        over = Segment(g.ring.desc_addr, 512, True)
        g.ring.add([g.header(IN), over, g.status])
        g.ring.kick(force=True)
        wait_until(lambda: g.memory.read(g.status_addr, 1)[0] != UNSET)
        assert g.memory.read(g.status_addr, 1)[0] == FINE
        assert g.driver.read(0, 4096, queue=1) == bytes(4096)


def test_4_6_buffers_that_are_not_there_or_in_the_wrong_order(scene: Scene) -> None:
    with guest(scene, features=PACKED_FEATURES) as g:
        head, status = g.put(header(IN)), g.status_addr
        data = g.put(bytes(512))
        for addr, length in ((HOLE, 512), ((1 << 64) - 8, 512), (data, 0xFFFF_FFFF)):
            assert run(g, (head, 16, 0), (addr, length, _WRITE), (status, 1, _WRITE)) == (1, BAD)
        assert run(g, (head, 16, 0), (status, 1, _WRITE), (data, 512, 0)) == (1, BAD)
        assert run(g, (head, 16, 0)) == (0, UNSET)
        g.fine()

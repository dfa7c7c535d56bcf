# SPDX-License-Identifier: Apache-2.0
"""Hostile guests against a whole daemon, in both lanes; the numbers are those of the list.

Each test says what is answered. After each the bystander goes on, and the daemon holds no more than
before (`Scene.check`). Walkers, queues and parsers by themselves are tested where they are.
"""

from __future__ import annotations

import os
import select
import struct
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.cli.process import wait_until
from tests.frontend.blk import FEATURES, BlkDriver
from tests.frontend.connection import Connection, make_eventfd
from tests.frontend.layout.virtio_blk import ID_BYTES, Feature, RequestType, Status
from tests.frontend.layout.virtqueue import DESC, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE
from tests.frontend.memory import MIB, Memory
from tests.frontend.ring import Segment
from tests.virtio_blk.support import header

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.frontend.scene import Scene

IN, OUT, FLUSH = RequestType.IN, RequestType.OUT, RequestType.FLUSH
LOW, FAR = 0, 1 << 32
ADJACENT = FAR + 8 * MIB
HOLE = 1 << 40
UNSET = 0xFF

#: What a chain may be answered with: its status byte, or nothing where it has no room for one.
BAD, FINE, UNSUPPORTED = Status.IOERR, Status.OK, Status.UNSUPP


class Answer(NamedTuple):
    """What came of a chain."""

    length: int
    status: int


class Guest:
    """A guest whose driver writes whatever it likes."""

    def __init__(self, connection: Connection, **options: int) -> None:
        self.memory = Memory(((LOW, 256 * 1024), (FAR, 8 * MIB), (ADJACENT, MIB)))
        self.driver = BlkDriver(connection, self.memory, **options)  # type: ignore[arg-type]
        self.ring = self.driver.rings[0]
        self.status_addr = self.put(bytes([UNSET]))

    def put(self, content: bytes) -> int:
        """Put bytes in guest memory; return their address."""
        addr = self.memory.allocate(len(content), 16, region=1)
        self.memory.write(addr, content)
        return addr

    @property
    def status(self) -> Segment:
        """Where a status goes; as unset as a guest can make it."""
        self.memory.write(self.status_addr, bytes([UNSET]))
        return Segment(self.status_addr, 1, True)

    def header(self, kind: int, sector: int = 0) -> Segment:
        """Write a request's header."""
        return Segment(self.put(header(kind, sector)), 16)

    def answered(self, head: int) -> Answer:
        """Kick, and wait until this chain is used."""
        self.ring.kick(force=True)
        (used,) = self.ring.wait()
        assert used.head == head
        return Answer(used.length, self.memory.read(self.status_addr, 1)[0])

    def run(self, segments: Sequence[Segment]) -> Answer:
        """Run one chain of whatever is in it."""
        return self.answered(self.ring.add(segments))

    def descriptors(self, *rows: tuple[int, int, int, int]) -> Answer:
        """Run the chain that begins at descriptor 0 of these."""
        for number, row in enumerate(rows):
            self.ring.desc[number] = row
        self.ring._chains[0] = []
        self.ring.make_available(0)
        return self.answered(0)

    def table(self, *rows: tuple[int, int, int, int]) -> int:
        """Write an indirect table; return its address."""
        content = b"".join(struct.pack("<QIHH", *row) for row in rows)
        return self.put(content)

    def fine(self) -> None:
        """An honest request is served as ever."""
        assert self.run([self.header(FLUSH), self.status]) == Answer(1, FINE)

    def close(self) -> None:
        self.driver.close()
        self.memory.close()


@contextmanager
def guest(scene: Scene, path: Path | None = None, **options: int) -> Iterator[Guest]:
    connection = scene.connect() if path is None else Connection.connect(path)
    found = Guest(connection, **{"num_queues": 2 if path is None else 1, **options})
    try:
        yield found
    finally:
        found.close()


def logged(scene: Scene, text: str) -> int:
    """Count the daemon's log lines with a text."""
    return sum(text in line for line in scene.daemon.output().splitlines())


def test_1_loops_in_the_direct_and_in_the_indirect_table(scene: Scene) -> None:
    with guest(scene) as g:
        addr = g.status.addr
        assert g.descriptors((addr, 1, DESC_F_NEXT | DESC_F_WRITE, 0)) == Answer(1, BAD)
        read = (g.put(header(IN)), 16, DESC_F_NEXT, 1)
        back = (addr, 1, DESC_F_NEXT | DESC_F_WRITE, 0)
        g.status  # noqa: B018 -- unset it
        assert g.descriptors(read, back).length in (0, 1)
        table = g.table(read, (addr, 1, DESC_F_NEXT | DESC_F_WRITE, 1))
        g.status  # noqa: B018
        assert g.descriptors((table, 32, DESC_F_INDIRECT, 0)) == Answer(1, BAD)
        g.fine()


@pytest.mark.parametrize("how", ["head", "index"])
def test_2_heads_and_indices_that_can_not_be_break_their_ring_alone(scene: Scene, how: str) -> None:
    """The front-end is told, the log too; the guest's other queue goes on."""
    before = logged(scene, "is broken")
    with guest(scene) as g:
        error = make_eventfd()
        g.driver.connection.set_vring_err(0, error)
        if how == "head":
            g.ring.make_available(g.ring.size)
        else:
            g.ring.next_avail += g.ring.size + 1
        g.ring.kick(force=True)
        assert select.select([error], [], [], 30)[0]
        os.close(error)
        assert g.driver.read(0, 4096, queue=1) == bytes(4096)
        assert int(g.ring.used_idx[0]) == 0
    assert logged(scene, "is broken") <= before + 1  # lines of one kind are limited


def test_2_next_out_of_the_table(scene: Scene) -> None:
    with guest(scene) as g:
        status = g.status.addr
        row = (status, 1, DESC_F_NEXT | DESC_F_WRITE, g.ring.size)
        assert g.descriptors(row) == Answer(1, BAD)
        g.status  # noqa: B018
        table = g.table((status, 1, DESC_F_NEXT | DESC_F_WRITE, 1))
        assert g.descriptors((table, 16, DESC_F_INDIRECT, 0)) == Answer(1, BAD)
        g.fine()


def test_2_indices_wrap_around(scene: Scene) -> None:
    with guest(scene, start=0xFFF0) as g:
        for _ in range(40):
            g.fine()


def test_3_indirect_tables_that_can_not_be(scene: Scene) -> None:
    with guest(scene) as g:
        fine = g.table(
            (g.put(header(FLUSH)), 16, DESC_F_NEXT, 1), (g.status_addr, 1, DESC_F_WRITE, 0)
        )
        nested = g.table((fine, 32, DESC_F_INDIRECT, 0))
        across = ADJACENT - 16
        g.memory.write(across, g.memory.read(fine, 16))
        g.memory.write(ADJACENT, g.memory.read(fine + 16, 16))
        before = int(g.ring.used_idx[0])
        bad = [
            (fine, 0, DESC_F_INDIRECT, 0),
            (fine, 17, DESC_F_INDIRECT, 0),
            (fine, 1025 * 16, DESC_F_INDIRECT, 0),
            (fine, 0xFFFF_FFF0, DESC_F_INDIRECT, 0),
            (nested, 16, DESC_F_INDIRECT, 0),
            (fine, 32, DESC_F_INDIRECT | DESC_F_NEXT, 1),
            (across, 32, DESC_F_INDIRECT, 0),
            (HOLE, 32, DESC_F_INDIRECT, 0),
            ((1 << 64) - 16, 32, DESC_F_INDIRECT, 0),
        ]
        for row in bad:
            g.status  # noqa: B018
            # No status byte can be found: used, with nothing written.
            assert g.descriptors(row) == Answer(0, UNSET), row
        assert int(g.ring.used_idx[0]) == before + len(bad)
        assert g.descriptors((fine, 32, DESC_F_INDIRECT, 0)) == Answer(1, FINE)


def test_4_addresses_that_overflow_or_are_not_mapped(scene: Scene) -> None:
    with guest(scene) as g:
        for addr, length in (
            ((1 << 64) - 256, 512),
            ((1 << 64) - 512, 512),
            (HOLE, 512),
            (ADJACENT + MIB - 256, 512),
            (FAR, 0xFFFF_FE00),
        ):
            data = Segment(addr, length, True)
            assert g.run([g.header(IN), data, g.status]) == Answer(1, BAD), hex(addr)
        g.fine()


def test_4_buffers_across_two_regions_and_empty_ones_are_served(scene: Scene) -> None:
    with guest(scene) as g:
        g.memory.write(ADJACENT - 256, b"x" * 256)
        g.memory.write(ADJACENT, b"x" * 256)
        across = Segment(ADJACENT - 256, 512, True)
        empty = Segment(HOLE, 0, True)
        answer = g.run([g.header(IN), across, empty, g.status])
        assert answer == Answer(513, FINE)
        assert g.memory.read(ADJACENT - 256, 256) + g.memory.read(ADJACENT, 256) == bytes(512)


def test_5_descriptors_headers_and_tables_changed_while_they_are_used(scene: Scene) -> None:
    """Every request is answered, whichever of the contents it was taken with."""
    with guest(scene) as g:
        stop = threading.Event()
        head, status, data = g.put(header(IN)), g.status_addr, g.put(bytes(512))
        good = [
            (head, 16, DESC_F_NEXT, 1),
            (data, 512, DESC_F_NEXT | DESC_F_WRITE, 2),
            (status, 1, DESC_F_WRITE, 0),
        ]
        table = g.table(*good)
        rows = g.memory.view(table, 48).view(DESC)
        types = g.memory.view(head, 4).view("<u4")
        sectors = g.memory.view(head + 8, 8).view("<u8")

        def change() -> None:
            while not stop.is_set():
                for place, row in enumerate(good):
                    rows[place] = (HOLE, 0xFFFF_FFFF, 0xFFFF, 999)
                    types[0], sectors[0] = 0x1234, (1 << 64) - 1
                    rows[place] = row
                    types[0], sectors[0] = IN, 0

        thread = threading.Thread(target=change)
        thread.start()
        try:
            for _ in range(50):
                assert g.descriptors((table, 48, DESC_F_INDIRECT, 0)).length in (0, 1, 513)
        finally:
            stop.set()
            thread.join()
        g.fine()


def test_6_header_and_status_in_any_pieces(scene: Scene) -> None:
    with guest(scene) as g:
        head, data = g.put(header(IN)), g.put(b"x" * 513)
        pieces = [Segment(head + place, 1) for place in range(16)]
        bytewise = [Segment(data + place, 1, True) for place in range(64)]
        whole = Segment(data + 64, 512 - 64 + 1, True)  # the status is its last byte
        assert g.run([*pieces, *bytewise, whole]).length == 513
        assert g.memory.read(data, 513) == bytes(513)


def test_6_chains_without_a_proper_status_or_header(scene: Scene) -> None:
    with guest(scene) as g:
        status = g.status
        nothing = Answer(0, UNSET)
        assert g.run([g.header(FLUSH)]) == nothing
        assert g.run([g.header(FLUSH), Segment(status.addr, 1)]) == nothing
        assert g.run([g.header(FLUSH), Segment(status.addr, 0, True)]) == nothing
        assert g.run([Segment(g.put(bytes(15)), 15), g.status]) == Answer(1, BAD)
        late = [g.header(OUT), g.status, Segment(g.put(bytes(512)), 512)]
        assert g.run(late) == Answer(1, BAD)
        g.fine()


def test_7_a_head_made_available_twice_breaks_its_ring_alone(scene: Scene) -> None:
    """Unless it was used in between, then it is served twice: the engine is that fast."""
    with guest(scene) as g:
        error = make_eventfd()
        g.driver.connection.set_vring_err(0, error)
        before = int(g.ring.used_idx[0])
        head = g.ring.add([g.header(FLUSH), g.status])
        g.ring.make_available(head)
        g.ring.kick(force=True)
        wait_until(
            lambda: (
                bool(select.select([error], [], [], 0)[0]) or int(g.ring.used_idx[0]) == before + 2
            )
        )
        os.close(error)
        assert g.driver.read(0, 4096, queue=1) == bytes(4096)


def test_8_ranges_that_overflow_or_end_past_the_disk(scene: Scene) -> None:
    with guest(scene) as g:
        capacity = g.driver.capacity // 512
        data = g.put(bytes(4096))
        for sector in (capacity, capacity - 1, 1 << 55, (1 << 55) - 1, (1 << 64) - 1):
            for kind in (IN, OUT):
                buffer = Segment(data, 1024, kind == IN)
                assert g.run([g.header(kind, sector), buffer, g.status]) == Answer(1, BAD)
        for length in (1, 511, 513):
            ragged = Segment(data, length, True)
            assert g.run([g.header(IN), ragged, g.status]) == Answer(1, BAD)


def test_8_sums_past_4_gib(scene: Scene) -> None:
    with guest(scene, queue_size=1024) as g:
        every = Segment(FAR, 8 * MIB, True)
        assert g.run([g.header(IN), *[every] * 1000, g.status]) == Answer(1, BAD)
        g.fine()


def test_9_discard_and_write_zeroes(scene: Scene) -> None:
    one = struct.pack("<QII", 0, 8, 0)
    cases = [
        (one[:15], BAD),
        (one + one[:8], BAD),
        (one * 33, BAD),
        (struct.pack("<QII", 0, 8, 0x80), UNSUPPORTED),
        (struct.pack("<QII", (1 << 64) - 8, 8, 0), BAD),
        (struct.pack("<QII", 0, 0xFFFF_FFFF, 0), BAD),
        (one * 32, FINE),
    ]
    with guest(scene) as g:
        for kind in (RequestType.DISCARD, RequestType.WRITE_ZEROES):
            for payload, status in cases:
                data = Segment(g.put(payload), len(payload))
                assert g.run([g.header(kind), data, g.status]) == Answer(1, status), payload


def test_9_discard_on_a_read_only_device(scene: Scene) -> None:
    assert scene.read_only is not None
    with guest(scene, scene.read_only) as g:
        data = Segment(g.put(struct.pack("<QII", 0, 8, 0)), 16)
        for kind in (RequestType.DISCARD, RequestType.WRITE_ZEROES):
            assert g.run([g.header(kind), data, g.status]) == Answer(1, BAD)


def test_10_types_that_nobody_offered(scene: Scene) -> None:
    with guest(scene) as g:
        for kind in (2, 3, 5, 9, 10, 14, 15, 16, 24, 26, 0x8000_0000, 0xFFFF_FFFF):
            into = Segment(g.put(bytes(64)), 64, True)
            for chain in ([], [into], [Segment(into.addr, 64)]):
                answer = g.run([g.header(kind), *chain, g.status])
                assert answer == Answer(1, UNSUPPORTED), kind


def test_10_writing_to_a_read_only_device_whose_driver_ignores_that(scene: Scene) -> None:
    assert scene.read_only is not None
    without = FEATURES & ~Feature.RO.mask
    with guest(scene, scene.read_only, features=without) as g:
        data = Segment(g.put(bytes(512)), 512)
        assert g.run([g.header(OUT), data, g.status]) == Answer(1, BAD)
        g.fine()


@pytest.mark.parametrize("length", [0, 1, 19, 20, 21, 64])
def test_11_identification_in_buffers_of_any_length(scene: Scene, length: int) -> None:
    """Honest length; not a byte beyond the name; nothing of the daemon's memory."""
    with guest(scene) as g:
        buffer = g.put(b"\xee" * 80)
        answer = g.run([g.header(RequestType.GET_ID), Segment(buffer, length, True), g.status])
        given = min(length, ID_BYTES)
        assert answer == Answer(given + 1, FINE)
        name = b"vhost_user_blk".ljust(ID_BYTES, b"\0")
        assert g.memory.read(buffer, 80) == name[:given] + b"\xee" * (80 - given)


def test_12_kicks_in_storms_and_at_the_wrong_time(scene: Scene) -> None:
    with guest(scene) as g:
        kick = g.ring.kick_fd
        os.set_blocking(kick, False)
        os.eventfd_write(kick, (1 << 63) - 1)
        for _ in range(2000):
            os.eventfd_write(kick, 1)
        g.fine()
        g.driver.connection.set_vring_enable(0, False)
        late = g.ring.add([g.header(FLUSH), g.status])
        g.ring.kick(force=True)
        g.driver.connection.sync()
        assert g.ring.poll() == []
        g.driver.connection.set_vring_enable(0, True)
        assert g.answered(late) == Answer(1, FINE)
        g.driver.connection.get_vring_base(0)
        os.eventfd_write(kick, 1)
        g.driver.connection.sync()


def test_13_data_over_the_rings(scene: Scene) -> None:
    """Zeroes are read over the descriptor table, then over both rings."""
    with guest(scene) as g:
        table = Segment(g.ring.desc_addr, 512, True)
        g.ring.add([g.header(IN), table, g.status])
        g.ring.kick(force=True)
        wait_until(lambda: g.memory.read(g.status_addr, 1)[0] != UNSET)
        assert g.memory.read(g.status_addr, 1)[0] == FINE
        for ring in (g.ring.avail_addr, g.ring.used_addr):
            assert ring % 2 == 0
            g.ring.add([g.header(IN), Segment(ring // 512 * 512, 512, True), g.status])
            g.ring.kick(force=True)
        assert g.driver.read(0, 4096, queue=1) == bytes(4096)


def resident(scene: Scene) -> int:
    """Return how much memory the daemon has, in KiB."""
    text = Path(f"/proc/{scene.daemon.process.pid}/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0])


def test_14_junk_costs_no_memory_and_few_lines_and_keeps_nobody_waiting(scene: Scene) -> None:
    with guest(scene, queue_size=1024) as g:
        before, lines = resident(scene), len(scene.daemon.output().splitlines())
        for _ in range(8):
            junk = [g.ring.add([Segment(HOLE, 0xFFFF_FFFF, True)] * 2) for _ in range(500)]
            g.ring.kick(force=True)
            assert g.driver.read(0, 4096, queue=1) == bytes(4096)
            done = 0
            while done < len(junk):
                done += len(g.ring.wait())
        assert resident(scene) < before + 64 * 1024
        assert len(scene.daemon.output().splitlines()) < lines + 10
        g.fine()

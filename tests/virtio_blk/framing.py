# SPDX-License-Identifier: Apache-2.0
"""Chains laid out in memory and parsed, by the code under test and by the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.virtio_blk.reference import Request, expected_request, requests_of
from tests.virtqueue.reference import regions_of, walk_chains
from tests.virtqueue.support import FAR, Desc, Guest, write_table
from vhostblk.virtio_blk.request import parse
from vhostblk.virtqueue.walker import walk, walk_any

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The device that requests are parsed for.
SIZE = 1 << 20
BLOCK = 512


class Parser:
    """A guest whose every chain is also parsed by the reference."""

    def __init__(self) -> None:
        self.guest = Guest(queue_size=64)
        self._next = FAR

    def close(self) -> None:
        self.guest.close()

    def place(self, content: bytes) -> int:
        """Put bytes in memory; return their guest address."""
        addr, self._next = self._next, self._next + len(content) + 1
        self.guest.memory.write(addr, content)
        return addr

    def forget(self) -> None:
        """Use the memory again."""
        self._next = FAR

    def parse(
        self, descriptors: Sequence[Desc], heads: Sequence[int] = (0,), block: int = BLOCK
    ) -> list[Request]:
        guest = self.guest
        write_table(guest.memory, guest.table, descriptors)
        table = guest.table_host()
        chains = walk_chains(heads, table, guest.queue_size, regions_of(guest.mapped))
        expected = [expected_request(chain, SIZE, block) for chain in chains]
        for walker in (walk, walk_any):
            batch = walker(np.array(heads, np.uint16), table, guest.queue_size, guest.mapped)
            found = requests_of(parse(batch, SIZE, block))
            assert found == expected
        return found

    def parse_chain(self, buffers: Sequence[tuple[int, int, bool]], block: int = BLOCK) -> Request:
        """Parse one chain of (guest address, length, writable)."""
        (request,) = self.parse(link(buffers), block=block)
        return request

    def host(self, addr: int, length: int = 1) -> list[int]:
        """Translate each byte of a range."""
        return [self.guest.host(addr + place) for place in range(length)]


def link(buffers: Sequence[tuple[int, int, bool]], start: int = 0) -> list[Desc]:
    """Make a direct chain whose first descriptor has number `start`."""
    last = len(buffers) - 1
    return [
        Desc(addr, length, 2 * writable | (place < last), start + place + 1)
        for place, (addr, length, writable) in enumerate(buffers)
    ]

# SPDX-License-Identifier: Apache-2.0
"""Random framings: `parse` and the reference find the same requests."""

from __future__ import annotations

import atexit
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtio_blk.framing import SIZE, Parser, link
from tests.virtqueue.support import HOLE, Desc

_parser = Parser()
atexit.register(_parser.close)

_headers = st.builds(
    lambda kind, sector: struct.pack("<IIQ", kind, 0, sector),
    st.sampled_from([0, 0, 1, 1, 4, 8, 11, 13, 15, 15, 16, 99, 0xFFFF_FFFF]),
    st.one_of(st.integers(0, SIZE // 512 + 2), st.integers(0, (1 << 64) - 1), st.just(1 << 55)),
)
_cuts = st.lists(st.integers(0, 20), max_size=6)
_holes = st.sampled_from([None, None, None, None, 0, 1, 2, 5])


def _cut(addr: int, length: int, lengths: list[int], writable: bool) -> list[tuple[int, int, bool]]:
    """Divide a range into descriptors of the given lengths and one with the rest."""
    buffers = []
    for wanted in lengths:
        taken = min(wanted, length)
        buffers.append((addr, taken, writable))
        addr, length = addr + taken, length - taken
    buffers.append((addr, length, writable))
    return buffers


_chains = st.tuples(
    st.one_of(_headers, st.binary(max_size=15)),
    st.sampled_from([0, 0, 1, 20, 512, 1024]),
    _cuts,
    st.sampled_from([0, 1, 1, 2, 9, 21, 513, 1025]),
    _cuts,
    _holes,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_chains, min_size=1, max_size=4), st.sampled_from([512, 1024]))
def test_random_framings(
    chains: list[tuple[bytes, int, list[int], int, list[int], int | None]], block: int
) -> None:
    _parser.forget()
    table: list[Desc] = []
    heads: list[int] = []
    for head, send, send_cuts, want, want_cuts, hole in chains:
        out, back = _parser.place(head + bytes(send)), _parser.place(bytes(want))
        buffers = _cut(out, len(head) + send, send_cuts, False)
        if want:
            buffers += _cut(back, want, want_cuts, True)
        if hole is not None and hole < len(buffers):
            buffers[hole] = (HOLE, *buffers[hole][1:])
        heads.append(len(table))
        table += link(buffers, len(table))
    _parser.parse(table, heads, block)

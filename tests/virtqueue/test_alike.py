# SPDX-License-Identifier: Apache-2.0
"""Bursts of chains that are alike take the shortcut, and those that differ anywhere do not."""

from __future__ import annotations

import atexit
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtqueue.support import FAR, KIB, LOW, Desc, Guest, write_table
from vhostblk.virtqueue.alike import MAX_DIRECT, MAX_INDIRECT, walk_alike
from vhostblk.virtqueue.layout import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE

QUEUE_SIZE = 64
TABLES = FAR + 16 * KIB

_guest = Guest(QUEUE_SIZE)
atexit.register(_guest.close)


def chain(length: int, readable: int, start: int) -> list[Desc]:
    """Make a chain in consecutive entries from `start`."""
    return [
        Desc(
            LOW + 100 * place,
            100,
            (DESC_F_NEXT if place < length - 1 else 0) | (DESC_F_WRITE if place >= readable else 0),
            start + place + 1 if place < length - 1 else 0,
        )
        for place in range(length)
    ]


class Burst:
    """Chains as tables that can be tampered with before they are walked."""

    def __init__(self, number: int, length: int, readable: int, *, indirect: bool) -> None:
        self.length, self.indirect = length, indirect
        starts = [0 if indirect else length * index for index in range(number)]
        self.chains = [chain(length, readable, start) for start in starts]
        self.jumps = [
            Desc(TABLES + 1024 * index, 16 * length, DESC_F_INDIRECT) for index in range(number)
        ]

    def walk(self) -> int:
        """Walk on both ways and the reference's; return what the shortcut calls the length."""
        if self.indirect:
            for jump, rows in zip(self.jumps, self.chains, strict=True):
                write_table(_guest.memory, jump.addr & 0xFFFF | FAR, rows)
            table, heads = self.jumps, list(range(len(self.jumps)))
        else:
            table = [row for rows in self.chains for row in rows]
            heads = [self.length * index for index in range(len(self.chains))]
        _guest.walk(table, heads)
        host, size = _guest.table_host(), _guest.queue_size
        batch = walk_alike(np.array(heads, np.uint16), host, size, _guest.mapped)
        return 0 if batch is None else batch.alike


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize(("number", "length"), [(1, 1), (1, 2), (8, 3), (21, 3), (8, MAX_DIRECT)])
def test_chains_of_one_length(number: int, length: int, indirect: bool) -> None:
    assert Burst(number, length, 1, indirect=indirect).walk() == length


def test_directions_may_differ() -> None:
    burst = Burst(2, 3, 1, indirect=False)
    burst.chains[1] = chain(3, 2, 3)
    assert burst.walk() == 3


def test_plain_descriptors_may_follow_one_another_in_any_order() -> None:
    burst = Burst(2, 2, 1, indirect=False)
    (a, b), (c, d) = burst.chains
    burst.chains = [[a._replace(next=3), b], [c._replace(next=1), d]]
    assert burst.walk() == 2


@pytest.mark.parametrize(
    ("length", "indirect"), [(MAX_DIRECT + 1, False), (MAX_INDIRECT + 1, True)]
)
def test_long_chains_are_walked_step_by_step(length: int, indirect: bool) -> None:
    assert Burst(1, length, 1, indirect=indirect).walk() == 0


@pytest.mark.parametrize(
    ("field", "place", "value"),
    [
        ("flags", 0, 0),
        ("flags", 1, DESC_F_NEXT | DESC_F_INDIRECT),
        ("flags", 2, DESC_F_NEXT | DESC_F_WRITE),
        ("flags", 2, 0),
        ("next", 0, 2),
        ("next", 1, QUEUE_SIZE),
        ("addr", 1, 1 << 50),
        ("length", 1, (1 << 32) - 1),
    ],
)
@pytest.mark.parametrize("indirect", [False, True])
def test_one_that_differs(field: str, place: int, value: int, indirect: bool) -> None:
    burst = Burst(4, 3, 1, indirect=indirect)
    burst.chains[2][place] = burst.chains[2][place]._replace(**{field: value})
    assert burst.walk() == 0


@pytest.mark.parametrize(
    "change",
    [
        {"flags": DESC_F_INDIRECT | DESC_F_NEXT},
        {"flags": 0},
        {"length": 32},
        {"length": 0},
        {"length": 49},
        {"addr": 1 << 50},
    ],
)
def test_one_table_that_differs(change: dict[str, Any]) -> None:
    burst = Burst(4, 3, 1, indirect=True)
    burst.jumps[3] = burst.jumps[3]._replace(**change)
    assert burst.walk() == 0


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 16),
    st.integers(1, 4),
    st.integers(0, 4),
    st.booleans(),
    st.lists(
        st.tuples(
            st.integers(0, 15),
            st.integers(0, 3),
            st.sampled_from(["addr", "length", "flags", "next"]),
            st.integers(0, (1 << 16) - 1),
        ),
        max_size=2,
    ),
)
def test_any_tampering_gets_the_same_verdict(
    number: int,
    length: int,
    readable: int,
    indirect: bool,
    changes: list[tuple[int, int, str, int]],
) -> None:
    burst = Burst(number, length, min(readable, length), indirect=indirect)
    for index, place, field, value in changes:
        rows = burst.chains[index % number]
        rows[place % length] = rows[place % length]._replace(**{field: value})
    burst.walk()

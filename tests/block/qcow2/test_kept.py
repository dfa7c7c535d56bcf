# SPDX-License-Identifier: Apache-2.0
"""Which tables go from memory, and how long that takes."""

from __future__ import annotations

import random

import pytest

from vhostblk.block.drivers.qcow2.kept import Tables


class _Table:
    """A table that counts how often one is looked at."""

    looked = 0

    def __init__(self, number: int, *, dirty: bool = False, pins: int = 0) -> None:
        self.number = number
        self._dirty = dirty
        self.pins = pins
        self.used = True

    @property
    def dirty(self) -> bool:
        _Table.looked += 1
        return self._dirty


def _put(tables: Tables[_Table], limit: int, table: _Table) -> list[int]:
    tables[table.number] = table
    gone = []
    for old in tables.excess(limit, table):
        del tables[old.number]
        gone.append(old.number)
    return gone


def test_those_not_used_for_longest_go_first() -> None:
    tables: Tables[_Table] = Tables()
    for number in range(4):
        assert not _put(tables, 4, _Table(number))
        tables[number].used = number == 1
    assert [_put(tables, 4, _Table(number)) for number in (4, 5, 6)] == [[0], [2], [3]]


def test_dirty_and_pinned_ones_and_the_newest_stay() -> None:
    tables: Tables[_Table] = Tables()
    assert not _put(tables, 2, _Table(0, dirty=True))
    assert not _put(tables, 2, _Table(1, pins=1))
    assert not _put(tables, 2, _Table(2))
    assert _put(tables, 2, _Table(3)) == [2]
    tables[0]._dirty, tables[1].pins = False, 0
    assert len(_put(tables, 2, _Table(4))) == 2
    assert 4 in tables


@pytest.mark.parametrize("dirty", [0.0, 0.5, 1.0])
def test_the_work_for_each_does_not_depend_on_how_many_there_are(dirty: float) -> None:
    tables: Tables[_Table] = Tables()
    rng, limit = random.Random("kept"), 20000
    for number in range(limit):
        assert not _put(tables, limit, _Table(number, dirty=rng.random() < dirty))
    for number in range(limit, limit + 2000):
        _Table.looked = 0
        _put(tables, limit, _Table(number))
        assert _Table.looked <= 64
    if dirty < 1:
        assert len(tables) < limit * 1.02

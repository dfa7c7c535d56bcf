# SPDX-License-Identifier: Apache-2.0
"""Looking ranges up in extent maps."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.inspection import inspection
from vhostblk.engine import load
from vhostblk.engine.layouts import check

ffi, lib = inspection()

UP, FILE, ZERO, NULL = lib.VB_GO_UP, lib.VB_GO_FILE, lib.VB_GO_ZERO, lib.VB_GO_NULL
READ, OVERWRITE, ZEROES = lib.VB_ENTRY_READ, lib.VB_ENTRY_OVERWRITE, lib.VB_ENTRY_ZERO
VOLATILE = lib.VB_ENTRY_VOLATILE

BITS = 12
CLUSTER = 1 << BITS


class Map(NamedTuple):
    """A map and what it points to."""

    encoded: Any
    table: Any = None


def make(kind: int, size: int, flags: int = lib.VB_EXTENT_WRITE, **members: Any) -> Map:
    members = {"kind": kind, "size": size, "flags": flags, "alignment": 1, **members}
    return Map(ffi.new("struct vb_extent_map *", members))


def make_table(entries: list[int], size: int | None = None) -> Map:
    table = ffi.new("uint64_t[]", entries)
    encoded = ffi.new(
        "struct vb_extent_map *",
        {
            "kind": lib.VB_EXTENT_TABLE,
            "size": len(entries) * CLUSTER if size is None else size,
            "flags": lib.VB_EXTENT_WRITE,
            "cluster_bits": BITS,
            "table": table,
        },
    )
    return Map(encoded, table)


def look(
    extents: Map, offset: int, length: int, *, write: bool = False, through: bool = False
) -> tuple[int, int]:
    """Return the verdict, and the file offset where that is FILE."""
    place = ffi.new("uint64_t *")
    access = lib.VB_ACCESS_WRITE if write else lib.VB_ACCESS_READ
    if through:
        access = lib.VB_ACCESS_WRITE_THROUGH
    verdict = lib.vb_inspect_extent(extents.encoded, offset, length, access, place)
    return verdict, place[0] if verdict == FILE else 0


def test_linear_map_adds_its_offset() -> None:
    linear = make(lib.VB_EXTENT_LINEAR, 8192, offset=1 << 40)
    assert look(linear, 512, 1024) == (FILE, (1 << 40) + 512)
    assert look(linear, 0, 8192, write=True) == (FILE, 1 << 40)


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 0),
        (8192, 1),
        (8193, 0),
        (0, 8193),
        (8191, 2),
        ((1 << 64) - 1, 2),
        (512, (1 << 64) - 512),
    ],
)
def test_ranges_outside_go_up(offset: int, length: int) -> None:
    for kind in (lib.VB_EXTENT_LINEAR, lib.VB_EXTENT_NULL):
        assert look(make(kind, 8192), offset, length) == (UP, 0)
    assert look(make_table([READ, READ]), offset, length) == (UP, 0)


def test_null_map() -> None:
    null = make(lib.VB_EXTENT_NULL, 8192)
    assert look(null, 0, 8192) == (NULL, 0)
    zeroes = make(lib.VB_EXTENT_NULL, 8192, lib.VB_EXTENT_WRITE | lib.VB_EXTENT_READ_ZEROES)
    assert look(zeroes, 0, 8192) == (ZERO, 0)
    assert look(zeroes, 0, 8192, write=True) == (NULL, 0)


def test_writes_need_leave() -> None:
    for kind in (lib.VB_EXTENT_NULL, lib.VB_EXTENT_LINEAR):
        assert look(make(kind, 8192, 0), 0, 512, write=True) == (UP, 0)


def test_no_map_and_unknown_kinds_go_up() -> None:
    assert look(Map(ffi.NULL), 0, 512) == (UP, 0)
    assert look(make(lib.VB_EXTENT_NONE, 8192), 0, 512) == (UP, 0)
    assert look(make(99, 8192), 0, 512) == (UP, 0)


def test_run_of_clusters_is_one_request() -> None:
    base = 100 * CLUSTER
    entries = [base + place * CLUSTER | READ for place in range(4)]
    table = make_table([*entries, 7 * CLUSTER | READ])
    assert look(table, 512, 4 * CLUSTER - 512) == (FILE, base + 512)
    assert look(table, 512, 4 * CLUSTER) == (UP, 0)
    assert look(table, 4 * CLUSTER + 8, 16) == (FILE, 7 * CLUSTER + 8)
    assert look(table, 0, 512, write=True) == (UP, 0)


def test_each_cluster_of_a_write_has_to_be_writable() -> None:
    mine, shared = READ | OVERWRITE, READ
    for entries in ([mine, shared], [shared, mine], [mine, shared, mine], [mine, mine, shared]):
        table = make_table([place * CLUSTER | flags for place, flags in enumerate(entries)])
        length = len(entries) * CLUSTER
        assert look(table, 0, length) == (FILE, 0)
        assert look(table, 0, length, write=True) == (UP, 0)
        assert look(table, 512, length - 1024, write=True) == (UP, 0)


def test_no_cluster_of_a_write_through_may_be_volatile() -> None:
    stored, volatile = READ | OVERWRITE, READ | OVERWRITE | VOLATILE
    for flags in (
        [volatile],
        [volatile, stored],
        [stored, volatile],
        [stored, volatile, stored],
        [stored, stored, volatile],
    ):
        table = make_table([place * CLUSTER | each for place, each in enumerate(flags)])
        length = len(flags) * CLUSTER
        assert look(table, 0, length, write=True) == (FILE, 0)
        assert look(table, 0, length, write=True, through=True) == (UP, 0)
        assert look(table, 512, length - 1024, write=True, through=True) == (UP, 0)


def test_zeroes_are_read_where_all_clusters_have_them() -> None:
    for entries in ([ZEROES, READ], [ZEROES, ZEROES, READ], [ZEROES, READ, ZEROES]):
        table = make_table(entries)
        assert look(table, 0, len(entries) * CLUSTER) == (UP, 0)
        assert look(table, 0, CLUSTER) == (ZERO, 0)


def test_last_cluster_may_be_cut_short() -> None:
    table = make_table([READ, CLUSTER | READ], size=CLUSTER + 512)
    assert look(table, CLUSTER, 512) == (FILE, CLUSTER)
    assert look(table, CLUSTER, 513) == (UP, 0)


_entries = st.lists(
    st.builds(
        lambda cluster, flags: cluster << BITS | flags,
        st.integers(0, 5),
        st.sampled_from(
            [
                *(0, READ, READ | OVERWRITE, READ | OVERWRITE, ZEROES, OVERWRITE),
                *(READ | OVERWRITE | 8, READ | OVERWRITE | 16, READ | OVERWRITE | VOLATILE),
            ]
        ),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(_entries, st.integers(1, 6).map(lambda n: [i << BITS | 3 for i in range(n)])),
    st.integers(0, 7 * CLUSTER),
    st.integers(0, 7 * CLUSTER),
    st.sampled_from(["read", "write", "through"]),
)
def test_table_agrees_with_a_byte_map(
    entries: list[int], offset: int, length: int, access: str
) -> None:
    """What is done at once is what each byte of the range allows."""
    write, through = access != "read", access == "through"
    table = make_table(entries)
    verdict, place = look(table, offset, length, write=write, through=through)
    covered = entries[offset >> BITS : (offset + length + CLUSTER - 1) >> BITS]
    fits = length > 0 and offset + length <= len(entries) * CLUSTER
    wanted = OVERWRITE if write else READ
    if not fits:
        assert verdict == UP
    elif not write and all(entry & ZEROES for entry in covered):
        assert verdict == ZERO
    elif all(
        entry & wanted
        and not (through and entry & VOLATILE)
        and entry >> BITS == (covered[0] >> BITS) + number
        for number, entry in enumerate(covered)
    ):
        assert (verdict, place) == (FILE, (covered[0] >> BITS << BITS) + offset % CLUSTER)
    else:
        assert verdict == UP


def test_layouts_are_those_of_the_compiler() -> None:
    engine = load()
    assert engine is not None
    check(engine.ffi)


def test_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from vhostblk.engine import layouts

    other = np.dtype([("operations", "<u8", (4,))])
    monkeypatch.setitem(layouts.SHARED, "struct vb_stats", other)
    engine = load()
    assert engine is not None
    with pytest.raises(ImportError, match="struct vb_stats"):
        check(engine.ffi)

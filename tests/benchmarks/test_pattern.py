# SPDX-License-Identifier: Apache-2.0
"""The contents that verification writes and recognizes."""

from __future__ import annotations

import pytest

from benchmarks.loadgen.build import load

SEED = 7
ZEROES = 0x8000_0000


def fill(block: int, generation: int, size: int = 4096, seed: int = SEED) -> bytearray:
    ffi, lib = load()
    data = bytearray(size)
    lib.lg_pattern_fill(ffi.from_buffer(data), size, seed, block, generation)
    return data


def check(data: bytearray, block: int, generation: int) -> str:
    ffi, lib = load()
    found = ffi.new("uint64_t *")
    error = lib.lg_pattern_check(ffi.from_buffer(data), len(data), SEED, block, generation, found)
    return str(ffi.string(ffi.cast("enum lg_error", error)))


@pytest.mark.parametrize("size", [512, 4096, 131072])
def test_own_contents_pass(size: int) -> None:
    assert check(fill(5, 3, size), 5, 3) == "LG_OK"


def test_another_generation_is_told() -> None:
    assert check(fill(5, 2), 5, 3) == "LG_WRONG_GENERATION"


def test_another_block_is_told() -> None:
    assert check(fill(6, 3), 5, 3) == "LG_WRONG_BLOCK"


def test_another_run_is_told() -> None:
    assert check(fill(5, 3, seed=SEED + 1), 5, 3) == "LG_WRONG_BLOCK"


@pytest.mark.parametrize("at", [8, 40, 511, 2048, 4095])
def test_any_flipped_bit_is_told(at: int) -> None:
    data = fill(5, 3)
    data[at] ^= 0x10
    assert check(data, 5, 3) == "LG_WRONG_CHECKSUM"


def test_half_of_another_generation_is_told() -> None:
    data = fill(5, 3)
    data[2048:] = fill(5, 2)[2048:]
    assert check(data, 5, 3) == "LG_WRONG_CHECKSUM"


def test_zeroes_instead_of_data_are_told() -> None:
    assert check(bytearray(4096), 5, 3) == "LG_WRONG_ZEROES"


def test_foreign_contents_are_told() -> None:
    assert check(bytearray(b"\xa5" * 4096), 5, 3) == "LG_WRONG_MAGIC"


def test_a_zeroed_generation_is_all_zeroes() -> None:
    assert check(fill(5, 3 | ZEROES), 5, 3 | ZEROES) == "LG_OK"
    assert check(fill(5, 2), 5, 3 | ZEROES) == "LG_WRONG_ZEROES"

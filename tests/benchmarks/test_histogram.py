# SPDX-License-Identifier: Apache-2.0
"""Histogram maths, in Python and in C."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.loadgen.build import load
from benchmarks.loadgen.histogram import BUCKETS, Histogram, bucket_floor, bucket_of


def histogram_of(*values: int) -> Histogram:
    counts = [0] * BUCKETS
    for value in values:
        counts[bucket_of(value)] += 1
    return Histogram(counts)


@given(st.integers(0, 2**64 - 1))
def test_value_lies_between_the_floors_of_its_bucket_and_the_next(value: int) -> None:
    bucket = bucket_of(value)
    assert 0 <= bucket < BUCKETS
    assert bucket_floor(bucket) <= value < bucket_floor(bucket + 1)


@given(st.integers(0, 2**64 - 1))
def test_c_puts_values_into_the_same_buckets(value: int) -> None:
    lib = load().lib
    bucket = lib.lg_bucket(value)
    assert bucket == bucket_of(value)
    assert lib.lg_bucket_floor(bucket) == bucket_floor(bucket)


def test_buckets_are_at_most_three_percent_wide() -> None:
    for bucket in range(64, BUCKETS - 1):
        floor = bucket_floor(bucket)
        assert (bucket_floor(bucket + 1) - floor) / floor <= 1 / 32


def test_c_and_python_agree_on_the_number_of_buckets() -> None:
    assert load().lib.LG_HISTOGRAM_BUCKETS == BUCKETS


def test_percentiles_of_small_values_are_exact() -> None:
    histogram = histogram_of(*range(1, 51))
    assert histogram.percentile(50) == 25
    assert histogram.percentile(99) == 50
    assert histogram.percentile(100) == 50
    assert histogram.mean == pytest.approx(25.5)


def test_a_rare_outlier_shows_in_the_high_percentile_only() -> None:
    histogram = histogram_of(*[10] * 999, 1_000_000)
    assert histogram.percentile(99) == 10
    assert histogram.percentile(99.95) == pytest.approx(1_000_000, rel=0.04)


def test_the_middle_half_has_no_outliers() -> None:
    assert histogram_of(*[1] * 25, *[20] * 50, *[1_000_000] * 25).middle_mean == 20
    assert histogram_of(*range(1, 5)).middle_mean == 2.5
    assert histogram_of(*range(1, 4)).middle_mean == 2


def test_no_values_have_percentile_and_mean_zero() -> None:
    assert Histogram().percentile(99) == 0
    assert Histogram().mean == 0


def test_merged_histograms_add_up() -> None:
    merged = Histogram.merge([histogram_of(1, 2), histogram_of(2, 3)])
    assert merged.count == 4
    assert merged.percentile(50) == 2

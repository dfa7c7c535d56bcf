# SPDX-License-Identifier: Apache-2.0
"""A peer can't fill the log."""

from __future__ import annotations

import logging

import pytest

from vhostblk.ratelimit import BURST, SECONDS_A_LINE, RateLimitedLogger


class Clock:
    """Time that passes when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limited(clock: Clock) -> RateLimitedLogger:
    return RateLimitedLogger(logging.getLogger("limited"), "100% pure: ", clock)


def test_first_lines_come_through(
    limited: RateLimitedLogger, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(100):
        limited.warning("line %d", number)
    assert caplog.messages == [f"100% pure: line {number}" for number in range(BURST)]


def test_later_ones_come_slowly_and_tell_how_many_were_left_out(
    limited: RateLimitedLogger, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(BURST + 7):
        limited.warning("line %d", number)
    caplog.clear()
    clock.now += SECONDS_A_LINE
    limited.warning("again")
    limited.warning("too soon")
    assert caplog.messages == ["100% pure: again (7 similar messages left out)"]


def test_quiet_source_saves_up_no_more_than_a_burst(
    limited: RateLimitedLogger, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.now += 1e6
    for _ in range(100):
        limited.warning("line")
    assert len(caplog.records) == BURST


def test_errors_have_their_traceback_and_count_too(
    limited: RateLimitedLogger, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(BURST + 1):
        limited.error("failed", exc_info=ValueError("why"))
    assert len(caplog.records) == BURST
    assert "ValueError: why" in caplog.text

# SPDX-License-Identifier: Apache-2.0
"""Calls on threads of their own."""

from __future__ import annotations

import asyncio

import pytest

from vhostblk.threads import in_thread


def test_results_and_errors_come_back() -> None:
    async def run() -> None:
        assert await in_thread(lambda: 1) == 1
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 // 0)

    asyncio.run(run())


def test_an_iterator_that_ends_is_an_error_too() -> None:
    """No future takes a StopIteration."""

    async def run() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            async with asyncio.timeout(20):
                await in_thread(lambda: next(iter(())))

    asyncio.run(run())

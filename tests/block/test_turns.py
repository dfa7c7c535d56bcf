# SPDX-License-Identifier: Apache-2.0
"""Turns of commands: one at a time, and none waits for itself."""

from __future__ import annotations

import asyncio

import pytest

from vhostblk.block.io.turns import Turns


def test_the_holder_takes_it_again_and_others_wait() -> None:
    async def main() -> list[str]:
        turns, said = Turns(), []

        async def other() -> None:
            async with turns:
                said.append("other")

        async with turns:
            waiting = asyncio.create_task(other())
            async with turns:
                await asyncio.sleep(0)
                said.append("inner")
            for _ in range(3):
                await asyncio.sleep(0)
            said.append("outer")
        await waiting
        async with turns:
            said.append("again")
        return said

    assert asyncio.run(main()) == ["inner", "outer", "other", "again"]


def test_it_is_given_up_when_a_command_fails_or_is_cancelled() -> None:
    async def main() -> None:
        turns = Turns()
        with pytest.raises(ValueError, match=r"^no$"):
            async with turns, turns:
                raise ValueError("no")

        async def hold() -> None:
            async with turns:
                await asyncio.Event().wait()

        for _ in range(2):
            holding = [asyncio.create_task(hold()) for _ in range(2)]
            await asyncio.sleep(0)
            for task in holding:
                task.cancel()
            await asyncio.wait(holding)
        async with asyncio.timeout(10), turns:
            pass

    asyncio.run(main())

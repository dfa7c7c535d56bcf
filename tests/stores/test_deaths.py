# SPDX-License-Identifier: Apache-2.0
"""A process is killed before any of its stores: the next one loses and repeats no request.

Requests that the driver has not seen used are taken again, in order; others are not. So no write is
lost, none is repeated after a later flush has completed, and none overtakes another.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import closing

import numpy as np
import pytest

from tests.stores import engine
from tests.stores.lives import Life, Moment, World, living
from vhostblk.virtqueue.split import SplitQueue

pytestmark = pytest.mark.skipif(not engine.AVAILABLE, reason="no C compiler")


def work(world: World, life: Life, rng: random.Random) -> list[Moment]:
    """Let driver and device work; return the moments."""
    moments: list[Moment] = []
    for _ in range(rng.choice((0, 1, 2, 3))):
        world.offer(rng.choice((1, 1, 2)))
    life.take()
    assert life.mine == [head for head in world.waiting if head not in life.unseen]
    moments += world.moments(life.pictures())
    for _ in range(rng.choice((1, 2))):
        done = rng.sample(life.mine, rng.randint(0, len(life.mine)))
        if done:
            life.give_back(done)
            moments += world.moments(life.pictures())
            if rng.random() < 0.8:  # otherwise it sees several bursts at once later
                assert world.see_used() == life.unseen
                life.unseen.clear()
    return moments


def live(world: World, lane: str, rng: random.Random, rounds: int) -> list[Moment]:
    """Run a process; return the moments at which it may be killed."""
    with living(world, lane) as life:
        moments = world.moments(life.pictures())
        for _ in range(rounds):
            moments += work(world, life, rng)
        moments.append(world.now())
    return moments


def judge(world: World, moment: Moment) -> bool:
    """Let the next process start at a moment, and check the requests that it takes.

    Return whether requests were marked as used that the driver had not seen yet.
    """
    world.return_to(moment)
    shown = world.see_used()
    world.offer(1)  # the driver may add a request before the process starts
    ring = world.ring()
    taken = world.take(ring)
    assert taken == world.waiting
    for head in reversed(taken):
        ring.push(np.array([head], np.uint16), np.ones(1, np.uint32))
        assert world.see_used() == [head]
    return bool(shown)


@pytest.mark.parametrize("lane", ["python", "express"])
def test_the_list_of_used_heads_goes_back_over_bursts(lane: str) -> None:
    """We follow the list only within a burst, but the specification demands all of it."""

    async def main() -> None:
        with closing(World(packed=False, start=0, garbage=True)) as world:
            for _ in range(2):
                with living(world, lane) as life:
                    for _ in range(4):
                        world.offer(1)
                    life.take()
                    heads = life.mine[::-1]
                    for burst in (heads[:2], heads[2:3], heads[3:]):
                        life.give_back(burst)
                    assert world.see_used() == heads
                    assert linked(world, 4) == heads[::-1]

    asyncio.run(main())


def linked(world: World, count: int) -> list[int]:
    """Return the heads in the list of used heads, the last one first."""
    ring = world.ring()
    assert isinstance(ring, SplitQueue)
    assert ring.inflight is not None
    head = int(ring.inflight._header["last_batch_head"][0])
    heads = []
    for _ in range(count):
        heads.append(head)
        head = int(ring.inflight._desc["next"][head])
    return heads


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("lane", ["python", "express"])
@pytest.mark.parametrize("seed", range(4))
def test_a_death_before_any_store(lane: str, packed: bool, seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        start = rng.choice((0, 5, 0xFFFD, 13))
        with closing(World(packed=packed, start=start, garbage=bool(seed % 2))) as world:
            moments = live(world, lane, rng, 6)
            delicate = [moment for moment in moments if judge(world, moment)]
            # The next process is killed, too.
            for moment in (*rng.choices(moments, k=8), *rng.choices(delicate, k=8)):
                world.return_to(moment)
                world.see_used()
                for second in live(world, lane, rng, 2):
                    judge(world, second)

    asyncio.run(main())

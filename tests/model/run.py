# SPDX-License-Identifier: Apache-2.0
"""Running one program, from making the files to the last check."""

from __future__ import annotations

import asyncio
import logging
import random
import tempfile
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from unittest import mock

from tests.model.changes import Changes
from tests.model.judge import judge_cuts, judge_files
from tests.model.player import HangError, Player
from tests.model.program import Act, Burst
from tests.model.world import PATIENCE, World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.model.program import Program, Step

#: How many power cuts are checked after a recorded run.
CUTS = 8
#: Directory for files in memory.
_WHERE = "/dev/shm"


class MistakeError(AssertionError):
    """The code under test has logged an internal error."""


def run(program: Program, *, cuts: int = CUTS) -> None:
    """Run a program; raises AssertionError if something is wrong."""
    with tempfile.TemporaryDirectory(prefix="vhostblk-model-", dir=_WHERE) as where:
        world = World(program.options, Path(where))
        world.make_files()
        with _mistakes_noticed() as mistakes, _ends_noticed():
            with world.yard.installed() if world.store else nullcontext():
                asyncio.run(_run(world, program, mistakes))
            if mistakes:
                raise MistakeError("; ".join(mistakes[:3]))
        judge_files(world, qemu=program.options.qemu)
        if program.options.cuts:
            judge_cuts(world, random.Random(program.options.seed), cuts)


async def _run(world: World, program: Program, mistakes: list[str]) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: mistakes.append(_told(context)))
    player, changes = Player(world), Changes(world)
    await world.start()
    try:
        for step in program.steps:
            await _step(player, changes, step)
            if mistakes:
                raise MistakeError("; ".join(mistakes[:3]))
            for disk in world.disks:
                await player.verify(disk)
            changes.check_bitmaps()
        await changes.read_kept()
        for disk in world.disks:
            await player.verify_all(disk)
    except BaseException:
        world.yard.dead = True
        with suppress(BaseException):
            async with asyncio.timeout(PATIENCE):
                await world.abandon()
        raise
    await world.stop()


async def _step(player: Player, changes: Changes, step: Step) -> None:
    if isinstance(step, Act):
        await _perform(changes, step)
        return

    def meanwhile() -> Iterator[asyncio.Task[None]]:
        if step.acts:
            yield asyncio.create_task(_perform_all(changes, step))

    await player.play(step, meanwhile)


async def _perform(changes: Changes, act: Act) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            await changes.perform(act)
    except TimeoutError:
        raise HangError(f"{act} does not end") from None


async def _perform_all(changes: Changes, burst: Burst) -> None:
    for act in burst.acts:
        await _perform(changes, act)


@contextmanager
def _ends_noticed() -> Iterator[None]:
    """Make drivers that would end the process, because copies differ, raise an error instead."""

    def end(message: str) -> NoReturn:
        raise MistakeError(message)

    with (
        mock.patch("vhostblk.block.drivers.blkverify.end_process", end),
        mock.patch("vhostblk.block.drivers.quorum.end_process", end),
    ):
        yield


def _told(context: dict[str, Any]) -> str:
    return f"{context.get('message')}: {context.get('exception')!r}"


class _Noticing(logging.Handler):
    """Notes log messages that have a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.found.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


@contextmanager
def _mistakes_noticed() -> Iterator[list[str]]:
    """Collect internal errors that the code under test logs, and hide its messages."""
    logger = logging.getLogger("vhostblk")
    handler = _Noticing()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler.found
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate

# SPDX-License-Identifier: Apache-2.0
"""The state of a running program: files, a daemon, disks with their guests, and a clock."""

from __future__ import annotations

import os
import random
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from unittest import mock

from tests.model import images
from tests.model.content import SECTOR
from tests.model.disk import Clock, Disk
from tests.model.guests import BackendGuest, Guest, QueueGuest
from tests.model.stack import GROUP, LIMITS, OFFSET, Stack
from tests.model.store import Yard
from vhostblk.daemon import Daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.model.bitmaps import BitmapModel
    from tests.model.program import Options

EXPORT = "export"
#: Seconds that a request or an act may take on a busy machine; one that takes longer hangs.
PATIENCE = 60.0
#: Paces at which the engine completes requests while slow ones are in flight.
_SLOW = ("long", "straggling")


@dataclass(eq=False)
class DiskState:
    """One disk: its model, its nodes, and its guest."""

    index: int
    model: Disk
    stack: Stack
    guest: Guest
    write_cache: bool = True
    bitmaps: dict[str, BitmapModel] = field(default_factory=dict)
    #: Ranges of sectors that the last step has touched: first, count.
    touched: list[tuple[int, int]] = field(default_factory=list)


class World:
    """The state of one running program."""

    def __init__(self, options: Options, directory: Path) -> None:
        self.options = options
        self.directory = directory
        self.clock = Clock()
        self.random = random.Random(options.seed)
        self.yard = Yard(self.clock, pace=options.pace, seed=options.seed)
        self.yard.recording = options.cuts
        self.yard.before_change = self._poll
        self.yard.engine_first = options.lane == "express" and options.pace in _SLOW
        self.daemon: Daemon
        self.disks: list[DiskState] = []
        #: Periods with other rules because an act was in progress: start, end, act.
        self.periods: list[tuple[int, int, str]] = []
        #: The number of layers of the first disk, and from which time on.
        self.chains: list[tuple[int, int]] = [(0, 1)]
        #: The time of the last crash, and the number of crashes.
        self.since = 0
        self.epoch = 0
        #: Whether the engine writes to files, or has written to them.
        self.express = options.lane == "express"
        #: Times at which the log contains all writes acknowledged before.
        self.moments: list[int] = []

    @property
    def store(self) -> bool:
        """Whether the files are those of the yard (`store.py`)."""
        return self.options.storage == "store"

    # Files.

    def make_files(self) -> None:
        """Make the images."""
        options = self.options
        token = self.clock.token()
        assert token == images.BASE_TOKEN
        if options.backing:
            images.make_base(self.directory, options)
        for index in range(1 + options.second):
            name = f"disk{index}.{options.format}"
            images.make_image(self.directory, name, options, options.size)
            if "offset" in options.below:
                self._shift(self.directory / name)

    def _shift(self, path: Path) -> None:
        """Move an image to an offset in its file."""
        content = images.load(path)
        with path.open("wb") as file:
            file.write(b"\xcc" * OFFSET)
            file.write(content.tobytes())

    def make_model(self) -> Disk:
        """Return the model of a new disk."""
        options = self.options
        garbage = options.format == "raw" or options.data_file == "raw"
        model = Disk(self.clock, options.size, garbage=garbage)
        if options.backing:
            model.initial(0, min(options.backing, options.size), images.BASE_TOKEN)
        return model

    # The daemon.

    async def start(self) -> None:
        """Start a daemon; the disks are made the first time only."""
        lane = self.options.lane
        with mock.patch.dict(os.environ, {} if lane == "backend" else {"VHOSTBLK_LANE": lane}):
            await self._start()

    async def _start(self) -> None:
        self.daemon = Daemon()
        await self.daemon.__aenter__()
        self.daemon.add_object({"qom-type": "throttle-group", "id": GROUP, "limits": LIMITS})
        if not self.disks:
            for index in range(1 + self.options.second):
                options = self.options
                stack = Stack(self.daemon, self.directory, options, f"disk{index}")
                await stack.build()
                guest = await self.connect(stack, index)
                state = DiskState(index, self.make_model(), stack, guest)
                self.disks.append(state)
                if not options.write_cache:
                    await self.set_write_cache(state, enabled=False)
            return
        for state in self.disks:
            state.stack = state.stack.again(self.daemon)
            await state.stack.build()
            state.guest = await self.connect(state.stack, state.index)
            await state.guest.set_write_cache(enabled=state.write_cache)

    async def connect(self, stack: Stack, index: int) -> Guest:
        """Return a guest of a disk."""
        options = self.options
        if options.lane == "backend" or index:
            return BackendGuest(self.daemon, self.daemon.graph.find(stack.top))
        path = self.directory / "socket"
        await self.daemon.add_export(
            {
                "type": "vhost-user-blk",
                "id": EXPORT,
                "node-name": stack.top,
                "addr": {"type": "unix", "path": str(path)},
                "writable": True,
                "num-queues": options.queues,
                "logical-block-size": options.block * SECTOR,
                **self._iothreads(),
            }
        )
        return await QueueGuest.connect(
            path, options.queues, packed=options.packed, taking=self.taking
        )

    def _iothreads(self) -> dict[str, list[str]]:
        """Make iothreads, and return the option of the export that names them."""
        options = self.options
        if not options.iothreads or options.lane != "express":
            return {}
        names = [f"iothread{number}" for number in range(options.queues)]
        for name in names:
            if name not in self.daemon.objects:
                self.daemon.add_object({"qom-type": "iothread", "id": name})
        return {"x-vhostblk-iothreads": names}

    async def leave(self, state: DiskState) -> None:
        """Disconnect a guest, and flush; raises OSError if that fails."""
        try:
            await state.guest.close()
        finally:
            if EXPORT in self.daemon.exports and not state.index:
                await self.daemon.remove_export(EXPORT)

    async def stop(self) -> None:
        """Disconnect all guests, and stop the daemon; requests now fail only for lack of space."""
        self.yard.failing.clear()
        for state in self.disks:
            start, refusals = self.clock.tick(), self.yard.refusals
            try:
                await self.leave(state)
            except OSError:
                if refusals == self.yard.refusals:
                    raise
            else:
                state.model.flushed(start)
        await self.daemon.close()
        self.moments.append(self.clock.tick())

    async def abandon(self) -> None:
        """Stop a daemon after a power cut; it logs errors, and nothing reaches the files."""
        for state in self.disks:
            with suppress(Exception):
                await self.leave(state)
        with suppress(Exception):
            await self.daemon.close()

    def begin_anew(self) -> None:
        """Continue after a crash, without the former records."""
        self.since = self.clock.tick()
        self.moments = [self.since]
        self.chains = [(self.since, self.chains[-1][1])]
        self.periods = []

    async def set_write_cache(self, state: DiskState, *, enabled: bool) -> None:
        """Turn a disk's write cache on or off."""
        # It counts as on while it is being changed.
        state.write_cache = True
        await state.guest.set_write_cache(enabled=enabled)
        state.write_cache = enabled

    # Acknowledged writes, and the content of the files at that time.

    def _poll(self) -> None:
        for state in self.disks:
            state.guest.poll()

    def note_bypassed(self) -> None:
        """Add all that the engine has written so far to the log."""
        if self.options.cuts and self.express:
            durable = not self.disks[0].write_cache if self.disks else False
            for file in self.yard.files.values():
                file.note_bypassed(durable=durable)
            self.moments.append(self.clock.tick())

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Pass completions on inside the block; the engine's writes are logged before that."""
        self.note_bypassed()
        yield
        self.moments.append(self.clock.tick())

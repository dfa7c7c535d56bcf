# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.switching`: vhostblk as a daemon that never sits still.

It takes the storage daemon's `--object`, `--blockdev` and `--export`. Every now and then it moves
all exports to the other lane, or holds them in a drained section for a moment, as a change of the
block graph would. `benchmarks.verify --switch` puts load on it. How often it has done so is kept in
the file that `--count` names.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import vhostblk
from vhostblk.errors import VhostblkError
from vhostblk.exports.vhost_user_blk.export import VhostUserBlkExport
from vhostblk.virtio_blk.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Sequence

#: How many of the disturbances are drained sections, and the longest of those, in seconds.
DRAIN_SHARE = 0.3
MAX_DRAIN = 0.02


def make_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.switching", description=__doc__)
    add = parser.add_argument
    add("--object", action="append", default=[])
    add("--blockdev", action="append", default=[])
    add("--export", action="append", default=[])
    add("--interval", type=float, default=0.2, help="mean seconds between two disturbances")
    add("--count", type=Path, help="file that says what was done so far")
    return parser


class Disturber:
    """Disturbs the exports of a daemon, at random times."""

    def __init__(self, daemon: vhostblk.Daemon, interval: float, count_file: Path | None) -> None:
        exports = daemon.exports.values()
        self._exports = [export for export in exports if isinstance(export, VhostUserBlkExport)]
        self._interval = interval
        self._count_file = count_file
        self._lane = Lane.EXPRESS
        self._counts = {"lane changes": 0, "drained sections": 0}
        with suppress(OSError, ValueError):  # a daemon before this one may have begun to count
            self._counts.update(json.loads(count_file.read_text()) if count_file else {})

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            await asyncio.sleep(random.uniform(0, 2 * self._interval))
            if random.random() < DRAIN_SHARE:
                await self._drain()
            else:
                await self._switch()
            if self._count_file is not None:
                self._save(self._count_file)

    def _save(self, path: Path) -> None:
        """Write the counts; whoever kills this process still finds the last ones."""
        new = path.with_suffix(".new")
        new.write_text(json.dumps(self._counts))
        new.replace(path)

    async def _switch(self) -> None:
        self._lane = Lane.PYTHON if self._lane is Lane.EXPRESS else Lane.EXPRESS
        for export in self._exports:
            await export.device.switch_lane(self._lane)
        self._counts["lane changes"] += 1

    async def _drain(self) -> None:
        for export in self._exports:
            async with export.backend.drained():
                await asyncio.sleep(random.uniform(0, MAX_DRAIN))
        self._counts["drained sections"] += 1


async def serve(options: argparse.Namespace) -> None:
    """Serve until a signal comes, or a disturbance fails."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with vhostblk.Daemon(
        objects=options.object, blockdevs=options.blockdev, exports=options.export
    ) as daemon:
        disturber = asyncio.create_task(Disturber(daemon, options.interval, options.count).run())
        waiting = asyncio.create_task(stop.wait())
        await asyncio.wait({disturber, waiting}, return_when=asyncio.FIRST_COMPLETED)
        for task in (disturber, waiting):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await disturber


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve; return the exit status."""
    try:
        asyncio.run(serve(make_parser().parse_args(arguments)))
    except VhostblkError as error:
        print(f"benchmarks.switching: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

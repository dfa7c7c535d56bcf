# SPDX-License-Identifier: Apache-2.0
"""Creating images: the job behind `blockdev-create`, and what it needs of drivers.

A driver that creates images has a module with a coroutine `create(options, graph, pause)`; it
raises BlockError or OSError. `pause` is awaited now and then by what takes long.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vhostblk.block.errors import BlockError
from vhostblk.block.pause import no_pause
from vhostblk.block.registry import driver_name
from vhostblk.jobs.job import Job
from vhostblk.schema.jobs import JobType

if TYPE_CHECKING:
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.pause import Pause
    from vhostblk.schema.create import BlockdevCreateOptions

_CREATORS = {
    "file": "vhostblk.block.drivers.create_file",
    "qcow2": "vhostblk.block.drivers.qcow2.create",
}


def creates_images(driver: str) -> bool:
    """Tell whether a driver creates images."""
    return driver in _CREATORS


async def create_image(
    options: BlockdevCreateOptions, graph: Graph, pause: Pause = no_pause
) -> None:
    """Create an image; raises BlockError or OSError."""
    creator: Any = importlib.import_module(_CREATORS[driver_name(options)])
    await creator.create(options, graph, pause)


class CreateJob(Job):
    """Creates an image. It stays until it is dismissed, so that its user learns what became of it.

    Raises BlockError where the driver can't create images.
    """

    type = JobType.CREATE

    def __init__(self, job_id: str, options: BlockdevCreateOptions, graph: Graph) -> None:
        super().__init__(job_id, auto_dismiss=False)
        self._options = options
        self._graph = graph
        if not creates_images(driver_name(options)):
            raise BlockError("Driver does not support blockdev-create")

    async def run(self) -> None:
        """Create it."""
        self.expect(1)
        try:
            await create_image(self._options, self._graph, self.pause_point)
        finally:
            self.advance(1)

# SPDX-License-Identifier: Apache-2.0
"""Creating images: the job behind `blockdev-create`.

A driver that creates images has a coroutine function for this in `schema.driver_manifest`. The
function awaits `pause` regularly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.block.errors import BlockError
from vhostblk.block.pause import no_pause
from vhostblk.block.registry import creator, driver_name
from vhostblk.jobs.job import Job
from vhostblk.schema.jobs import JobType

if TYPE_CHECKING:
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.pause import Pause
    from vhostblk.schema.create import BlockdevCreateOptions


async def create_image(
    options: BlockdevCreateOptions, graph: Graph, pause: Pause = no_pause
) -> None:
    """Create an image; raises BlockError or OSError."""
    create = creator(driver_name(options))
    if create is None:
        raise _cannot_create()
    await create(options, graph, pause)


def _cannot_create() -> BlockError:
    return BlockError("Driver does not support blockdev-create")


class CreateJob(Job):
    """Creates an image. The job stays until it is dismissed, so that the user can query its result.

    Raises BlockError if the driver can't create images.
    """

    type = JobType.CREATE

    def __init__(self, job_id: str, options: BlockdevCreateOptions, graph: Graph) -> None:
        super().__init__(job_id, auto_dismiss=False)
        self._options = options
        self._graph = graph
        if creator(driver_name(options)) is None:
            raise _cannot_create()

    async def run(self) -> None:
        """Create the image."""
        self.expect(1)
        try:
            await create_image(self._options, self._graph, self.pause_point)
        finally:
            self.advance(1)

# SPDX-License-Identifier: Apache-2.0
"""Amending images: the job behind `x-blockdev-amend`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.block.errors import BlockError
from vhostblk.block.graph.amending import AmendsImage
from vhostblk.block.registry import driver_name
from vhostblk.jobs.job import Job
from vhostblk.schema.jobs import JobType

if TYPE_CHECKING:
    from vhostblk.block.graph.node import BlockNode
    from vhostblk.schema.amend import BlockdevAmendOptions


class AmendJob(Job):
    """Amends an image. Raises BlockError if the driver doesn't support this."""

    type = JobType.AMEND

    def __init__(self, job_id: str, node: BlockNode, options: BlockdevAmendOptions) -> None:
        super().__init__(job_id, auto_dismiss=False)
        if node.driver != driver_name(options):
            raise BlockError("x-blockdev-amend doesn't support changing the block driver")
        image: AmendsImage | None = node.capability(AmendsImage)
        if image is None:
            raise BlockError("Driver does not support x-blockdev-amend")
        self._image = image
        self._options = options

    async def run(self) -> None:
        """Amend the image."""
        self.expect(1)
        self.advance(1)
        await self._image.amend(self._options)

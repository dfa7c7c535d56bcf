# SPDX-License-Identifier: Apache-2.0
"""Changing what an image was created with: the job behind `x-blockdev-amend`.

By QMP that is encryption only, as in QEMU; so it fails, as there are no encrypted images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.block.errors import BlockError
from vhostblk.block.registry import driver_name
from vhostblk.jobs.job import Job
from vhostblk.schema.amend import BlockdevAmendOptionsQcow2
from vhostblk.schema.base import UNSET
from vhostblk.schema.jobs import JobType

if TYPE_CHECKING:
    from vhostblk.block.graph.node import BlockNode
    from vhostblk.schema.amend import BlockdevAmendOptions


class AmendJob(Job):
    """Amends an image. Raises BlockError where the driver can't do that."""

    type = JobType.AMEND

    def __init__(self, job_id: str, node: BlockNode, options: BlockdevAmendOptions) -> None:
        super().__init__(job_id, auto_dismiss=False)
        if node.driver != driver_name(options):
            raise BlockError("x-blockdev-amend doesn't support changing the block driver")
        if not isinstance(options, BlockdevAmendOptionsQcow2):
            raise BlockError("Driver does not support x-blockdev-amend")
        self._options = options

    async def run(self) -> None:
        """Amend it."""
        self.expect(1)
        self.advance(1)
        if self._options.encrypt is not UNSET:
            raise BlockError("image is not encrypted, can't amend")

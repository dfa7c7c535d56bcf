# SPDX-License-Identifier: Apache-2.0
"""Commands that create and change images."""

from __future__ import annotations

from vhostblk.daemon import Daemon  # noqa: TC001 (annotations are read at run time)
from vhostblk.qmp.registry import command
from vhostblk.schema.create import BlockdevCreate  # noqa: TC001 (read at run time)


@command("blockdev-create")
async def blockdev_create(daemon: Daemon, arguments: BlockdevCreate) -> None:
    """Start a job that creates an image."""
    daemon.create_image(arguments.job_id, arguments.options)

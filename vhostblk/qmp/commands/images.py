# SPDX-License-Identifier: Apache-2.0
"""Commands that create and change images."""

from __future__ import annotations

from vhostblk.block.errors import BlockError, NoNode
from vhostblk.block.graph.checking import ChecksImage
from vhostblk.daemon import Daemon  # noqa: TC001 (annotations are read at run time)
from vhostblk.errors import errors_as
from vhostblk.qmp.registry import command
from vhostblk.schema.amend import BlockdevAmend, BlockdevCheck, ImageCheck
from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.create import BlockdevCreate  # noqa: TC001 (read at run time)


@command("blockdev-create")
async def blockdev_create(daemon: Daemon, arguments: BlockdevCreate) -> None:
    """Start a job that creates an image."""
    daemon.create_image(arguments.job_id, arguments.options)


@command("x-blockdev-amend", features=("unstable",))
async def blockdev_amend(daemon: Daemon, arguments: BlockdevAmend) -> None:
    """Start a job that changes the creation options of an image."""
    from vhostblk.block.amend import AmendJob

    node = daemon.graph.find(arguments.node_name)
    daemon.jobs.start(AmendJob(arguments.job_id, node, arguments.options))


@command("x-vhostblk-blockdev-check", features=("unstable",))
async def blockdev_check(daemon: Daemon, arguments: BlockdevCheck) -> ImageCheck:
    """Check an image, and optionally repair it; its users wait meanwhile."""
    async with daemon.graph.changing():
        node = daemon.graph.find(arguments.node_name, NoNode.NODE_NAME)
        if arguments.repair and node.read_only:
            raise BlockError(f"Node '{node.node_name}' is read only")
        if arguments.repair and not node.active:
            raise BlockError(f"Node '{node.node_name}' is inactive")
        image: ChecksImage | None = node.capability(ChecksImage)
        if image is None:
            raise BlockError("This image format does not support checks")
        with errors_as(BlockError):
            found = await image.check_image(repair=arguments.repair)
    return ImageCheck(
        filename=node.filename,
        format=node.driver,
        check_errors=0,
        corruptions=_some(found.corruptions - found.corruptions_fixed),
        leaks=_some(found.leaks - found.leaks_fixed),
        corruptions_fixed=_some(found.corruptions_fixed),
        leaks_fixed=_some(found.leaks_fixed),
    )


def _some(count: int) -> int | UnsetType:
    """Omit zero, as QEMU does."""
    return count or UNSET

# SPDX-License-Identifier: Apache-2.0
"""Long backing chains: what is asked of each image is asked once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from unittest import mock

from integration.qcow2.tools import qemu_img
from vhostblk.block.graph.describe import Descriptions
from vhostblk.block.graph.image_name import ImageNames
from vhostblk.daemon import Daemon

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = 60


def make_chain(directory: Path) -> Path:
    """Make a chain of images; return the top one."""
    path = directory / "0"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    for number in range(1, LAYERS):
        below, path = path, directory / str(number)
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, path, "1M")
    return path


def test_each_image_of_a_chain_is_named_once(tmp_path: Path) -> None:
    """With each layer the time doubled: twenty-five took minutes."""
    top = make_chain(tmp_path)
    named: list[object] = []
    work_out = ImageNames._exact_name

    def count(self: ImageNames, node: object) -> str | None:
        named.append(node)
        return work_out(self, node)  # type: ignore[arg-type]

    async def main() -> None:
        async with Daemon() as daemon:
            await daemon.add_blockdev(
                {
                    "driver": "qcow2",
                    "node-name": "top",
                    "file": {"driver": "file", "filename": str(top)},
                }
            )
            nodes = list(daemon.graph)
            assert len(nodes) == 2 * LAYERS
            named.clear()
            descriptions = Descriptions()
            described = [descriptions.describe(node) for node in nodes]
            assert sorted(map(id, named)) == sorted(map(id, nodes))
            whole = described[next(i for i, n in enumerate(nodes) if n.node_name == "top")]
            assert whole.backing_file_depth == LAYERS - 1
            image, files = whole.image, []
            while True:
                files.append(image.filename)
                if not isinstance(image.backing_image, type(image)):
                    break
                image = image.backing_image
            assert files == [str(tmp_path / str(number)) for number in reversed(range(LAYERS))]

    with mock.patch.object(ImageNames, "_exact_name", count):
        asyncio.run(main())

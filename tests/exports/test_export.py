# SPDX-License-Identifier: Apache-2.0
"""The export itself: its checks, and its place between block layer and socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.exports.support import export_options
from tests.virtio_blk.support import HandNode, attach
from vhostblk.engine.iothreads import Iothreads
from vhostblk.errors import VhostblkError
from vhostblk.exports.vhost_user_blk.export import VhostUserBlkExport

if TYPE_CHECKING:
    from pathlib import Path


def test_size_has_to_be_whole_blocks() -> None:
    with pytest.raises(VhostblkError, match="not a multiple of the logical block size, 4096"):
        VhostUserBlkExport(
            export_options(logical_block_size=4096), attach(HandNode(4608)), Iothreads()
        )


def test_address_has_to_be_local() -> None:
    address = {"type": "vsock", "cid": "1", "port": "2"}
    with pytest.raises(VhostblkError, match="'unix' and 'fd'"):
        VhostUserBlkExport(export_options(addr=address), attach(HandNode()), Iothreads())


def test_stop_flushes_and_leaves_the_block_backend_alone(tmp_path: Path) -> None:
    async def run() -> None:
        node = HandNode()
        backend = attach(node)
        path = tmp_path / "socket"
        options = export_options(addr={"type": "unix", "path": str(path)})
        export = VhostUserBlkExport(options, backend, Iothreads())
        await export.start()
        assert path.exists()
        await export.stop()
        assert not path.exists()
        assert node.log == ["flush"]
        async with backend.drained():
            pass
        await backend.detach()

    asyncio.run(run())

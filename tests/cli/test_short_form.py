# SPDX-License-Identifier: Apache-2.0
"""What the short form makes of an image."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.cli.process import running, wait_until
from tests.frontend.blk import BlkDriver
from tests.frontend.connection import Connection
from tests.frontend.memory import MIB, Memory
from vhostblk.cli.short_form import image_blockdev, short_export
from vhostblk.schema.blockdev import BlockdevDiscardOptions

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("writable", [True, False])
def test_the_node(tmp_path: Path, writable: bool) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    export = short_export(f"addr.type=fd,addr.str=3,writable={'on' if writable else 'off'}")
    node = image_blockdev(str(image), export)
    assert node.read_only is not writable
    wanted = BlockdevDiscardOptions.UNMAP if writable else BlockdevDiscardOptions.IGNORE
    assert node.discard is wanted


def test_what_the_guest_trims_is_freed(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(4 * MIB))
    memory = Memory()
    address = "--addr.type=unix,addr.path=v.sock,writable=on"
    pidfile = tmp_path / "v.pid"
    with running("disk.img", address, "--pidfile", str(pidfile), cwd=tmp_path) as daemon:
        wait_until(lambda: pidfile.exists() and pidfile.read_text() != "", daemon)
        before = image.stat().st_blocks
        with Connection.connect(tmp_path / "v.sock", 30) as connection:
            with BlkDriver(connection, memory) as disk:
                disk.discard((MIB, 2 * MIB))
                assert disk.read(MIB, 4096) == bytes(4096)
        assert image.stat().st_blocks <= before - 2 * MIB // 512
    memory.close()

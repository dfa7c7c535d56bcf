# SPDX-License-Identifier: Apache-2.0
"""What the short form makes of an image."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.cli.process import refusal, running, wait_for_socket, wait_until
from tests.frontend.blk import BlkDriver
from tests.frontend.connection import Connection
from tests.frontend.memory import MIB, Memory
from vhostblk.cli.short_form import image_blockdev, short_export
from vhostblk.schema.blockdev import BlockdevDiscardOptions
from vhostblk.schema.drivers.raw import BlockdevOptionsRaw
from vhostblk.schema.exports.vhost_user_blk import BlockExportOptionsVhostUserBlk

if TYPE_CHECKING:
    from pathlib import Path


ADDRESS = "--addr.type=unix,addr.path=v.sock"


@pytest.mark.parametrize("writable", [True, False])
def test_the_node(tmp_path: Path, writable: bool) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    export, image_format = short_export(
        f"addr.type=fd,addr.str=3,writable={'on' if writable else 'off'}"
    )
    assert image_format is None
    node = image_blockdev(str(image), export, image_format)
    assert isinstance(node, BlockdevOptionsRaw)
    assert node.read_only is not writable
    wanted = BlockdevDiscardOptions.UNMAP if writable else BlockdevDiscardOptions.IGNORE
    assert node.discard is wanted


def test_there_is_a_queue_for_each_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for processors, queues in ((1, 1), (3, 3), (64, 16)):
        monkeypatch.setattr(os, "cpu_count", lambda count=processors: count)
        export, _ = short_export("addr.type=fd,addr.str=3")
        assert isinstance(export, BlockExportOptionsVhostUserBlk)
        assert export.num_queues == queues
    export, _ = short_export("addr.type=fd,addr.str=3,num-queues=2")
    assert isinstance(export, BlockExportOptionsVhostUserBlk)
    assert export.num_queues == 2


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


#: Options of `qemu-img create` for the formats that it can make, and the names that we show.
IMAGES = [
    ("qcow2", "qcow2"),
    ("qcow2 -o compat=0.10", "qcow2"),
    ("qcow", "qcow"),
    ("qed", "qed"),
    ("vmdk", "vmdk"),
    ("vmdk -o subformat=monolithicFlat", "vmdk"),
    ("vdi", "vdi"),
    ("vhdx", "vhdx"),
    ("vpc", "vpc"),
    ("vpc -o subformat=fixed", "vpc"),
    ("parallels", "parallels"),
    ("luks --object secret,id=s,data=x -o key-secret=s,iter-time=10", "luks"),
]


def create(path: Path, options: str) -> None:
    words = ["qemu-img", "create", "-q", "-f", *options.split(), str(path), "1M"]
    subprocess.run(words, check=True)


@pytest.mark.parametrize(("options", "name"), IMAGES)
@pytest.mark.parametrize("writable", ["on", "off"])
def test_an_image_of_another_format_is_refused(
    tmp_path: Path, options: str, name: str, writable: str
) -> None:
    create(tmp_path / "disk.img", options)
    raw = "',format=raw' to give guests the bytes of the file itself"
    if name == "qcow2":
        choice = f"append ',format=qcow2' to the address to open it as such, or {raw}"
    else:
        choice = f"{name} is not available in vhostblk yet; append {raw}"
    assert refusal("disk.img", f"{ADDRESS},writable={writable}", cwd=tmp_path) == (
        f"disk.img: 'disk.img' looks like a {name} image: {choice}"
    )


@pytest.mark.parametrize("options", ["qcow2", "vpc -o subformat=fixed"])
def test_any_image_is_raw_where_the_user_says_so(tmp_path: Path, options: str) -> None:
    image = tmp_path / "disk.img"
    create(image, options)
    os.truncate(image, -(-image.stat().st_size // 512) * 512)
    content = image.read_bytes()
    memory = Memory()
    with running("disk.img", f"{ADDRESS},format=raw", cwd=tmp_path) as daemon:
        wait_for_socket(daemon, "v.sock")
        with Connection.connect(tmp_path / "v.sock", 30) as connection:
            with BlkDriver(connection, memory) as disk:
                assert disk.read(0, 512) == content[:512]
    memory.close()


def test_a_qcow2_image_is_opened_where_the_user_says_so(tmp_path: Path) -> None:
    create(tmp_path / "disk.img", "qcow2")
    memory = Memory()
    with running("disk.img", f"{ADDRESS},format=qcow2,writable=on", cwd=tmp_path) as daemon:
        wait_for_socket(daemon, "v.sock")
        with Connection.connect(tmp_path / "v.sock", 30) as connection:
            with BlkDriver(connection, memory) as disk:
                disk.write(4096, b"x" * 4096)
                disk.flush()
    memory.close()
    check = ["qemu-io", "-f", "qcow2", "-c", "read -P 0x78 4k 4k", str(tmp_path / "disk.img")]
    said = subprocess.run(check, check=True, capture_output=True, text=True).stdout
    assert "Pattern verification failed" not in said


def test_an_unknown_format(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(512))
    said = refusal("disk.img", f"{ADDRESS},format=qcow3", cwd=tmp_path)
    assert said == "disk.img: format=qcow3 is not one of qcow2, raw"


def test_a_format_without_an_image(tmp_path: Path) -> None:
    node = ("--blockdev", "null-co,node-name=n,size=1048576")
    said = refusal(*node, f"{ADDRESS},format=raw", cwd=tmp_path)
    assert said == f"{ADDRESS},format=raw: format= needs an image, and none is named"

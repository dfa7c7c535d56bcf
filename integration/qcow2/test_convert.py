# SPDX-License-Identifier: Apache-2.0
"""`qemu-img convert -n` to qcow2 images that vhostblk serves, with QEMU's vhost-user client."""

from __future__ import annotations

import os
import random
import subprocess
from typing import TYPE_CHECKING

import pytest

from integration.guest.server import Program, Server
from integration.qcow2.tools import check
from peers.debian import MODULES, TRIXIE, program

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not TRIXIE.is_complete(), reason="no Debian 13 root")

KIB = 1 << 10
SIZE = 32 << 20


def qemu_img(*arguments: object) -> None:
    """Run QEMU 10's qemu-img, which has a vhost-user client."""
    done = subprocess.run(
        [*program("qemu-img"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, "QEMU_MODULE_DIR": str(TRIXIE.path / MODULES)},
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"


def make_source(path: Path, seed: int) -> None:
    """Write a sparse file: a stream, every other cluster, then data and holes of many lengths."""
    chance = random.Random(seed)
    with path.open("wb") as file:
        file.write(chance.randbytes(8 << 20))
        while file.tell() < 20 << 20:
            file.write(chance.randbytes(64 * KIB))
            file.seek(64 * KIB, os.SEEK_CUR)
        while file.tell() < SIZE:
            file.write(chance.randbytes(4 * KIB * chance.choice([1, 1, 3, 16, 17, 64, 128])))
            file.seek(4 * KIB * chance.choice([1, 3, 16, 17, 64, 100]), os.SEEK_CUR)
        file.truncate(SIZE)


@pytest.mark.parametrize("lane", ["express", "python"])
@pytest.mark.parametrize(
    ("create", "convert"),
    [
        ("cluster_size=64k", ("-W", "-m", "16", "--target-is-zero")),
        ("cluster_size=4k", ("-W", "-m", "16", "--target-is-zero")),
        ("extended_l2=on,cluster_size=128k", ("-W", "-m", "16", "--target-is-zero")),
        ("cluster_size=64k", ("-m", "8")),
    ],
)
def test_a_sparse_copy_is_the_same(
    lane: str, create: str, convert: tuple[str, ...], directory: Path
) -> None:
    source, image, socket = directory / "source", directory / "disk.qcow2", directory / "v.sock"
    make_source(source, seed=1)
    qemu_img("create", "-q", "-f", "qcow2", "-o", create, image, SIZE)
    node = f"driver=qcow2,node-name=disk,file.driver=file,file.filename={image},discard=unmap"
    export = f"vhost-user-blk,id=e,node-name=disk,writable=on,addr.type=unix,addr.path={socket}"
    server = Server(Program.VHOSTBLK, ["--blockdev", node, "--export", export], directory)
    server.environment["VHOSTBLK_LANE"] = lane
    served = f"driver=virtio-blk-vhost-user,path={socket},cache.direct=on"
    with server:
        qemu_img("convert", "-n", *convert, "-f", "raw", source, "--target-image-opts", served)
        qemu_img("convert", "-O", "raw", "--image-opts", served, directory / "read")
        assert (directory / "read").read_bytes() == source.read_bytes()
    check(image)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", source, image)

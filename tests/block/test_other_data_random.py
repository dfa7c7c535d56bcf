# SPDX-License-Identifier: Apache-2.0
"""Random changes below images in use, checked with a model: each file keeps its data."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import options, read_bytes, run, write_bytes
from tests.block.test_other_data import MIB, check_image, file, graph_of, image, qemu_img, user
from vhostblk.block.errors import PermissionConflictError

if TYPE_CHECKING:
    from pathlib import Path

    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.block.graph.graph import Graph

#: Images: name, length of the disk, how it is made. The last two are in one file.
IMAGES = {
    "a": (MIB, "cluster_size=64k"),
    "b": (MIB // 2, "cluster_size=4k"),
    "c": (2 * MIB, "cluster_size=16k,extended_l2=on"),
    "low": (MIB, "cluster_size=8k,lazy_refcounts=on"),
    "high": (MIB, "cluster_size=64k,compat=0.10"),
}
#: Offset of the second image in that file.
HALF = 4 * MIB
DISKS, THROTTLES = ("p", "q"), ("t0", "t1")


class Model:
    """The content of each image, and the children of each node."""

    def __init__(self) -> None:
        self.disks = {name: bytearray(size) for name, (size, _) in IMAGES.items()}
        self.below = {"p": "a-file", "q": "b-file", "t0": "c-file", "t1": "r"}
        self.offset = 0

    def image(self, node: str) -> str:
        """Return the image that belongs to a node."""
        while node in self.below:
            node = self.below[node]
        if node == "r":
            return "high" if self.offset else "low"
        return node.removesuffix("-file")

    def definition(self, node: str) -> dict[str, Any]:
        """Return a node's options."""
        if node == "r":
            window: dict[str, Any] = {"offset": self.offset, "size": HALF}
            return {"driver": "raw", "node_name": "r", "file": "both-file", **window}
        if node in THROTTLES:
            below = self.below[node]
            return {"driver": "throttle", "node_name": node, "throttle_group": "g", "file": below}
        return image(node, self.below[node], discard="unmap")


def make_all(directory: Path) -> None:
    for name, (size, form) in IMAGES.items():
        qemu_img("create", "-f", "qcow2", "-o", form, directory / name, size)
    both = (directory / "low").read_bytes().ljust(HALF, b"\0")
    (directory / "both").write_bytes((both + (directory / "high").read_bytes()).ljust(2 * HALF))


async def reopen(graph: Graph, model: Model, rng: random.Random) -> bool:
    """Try to give some nodes other children."""
    before = (dict(model.below), model.offset)
    chosen = rng.sample([*DISKS, *THROTTLES, "r"], rng.choice([1, 1, 2, 3]))
    for node in chosen:
        if node == "r":
            model.offset = rng.choice([0, HALF])
        else:
            more = THROTTLES if node in DISKS else ()
            model.below[node] = rng.choice(["a-file", "b-file", "c-file", "r", *more])
    try:
        await graph.reopen([options(**model.definition(node)) for node in chosen])
    except PermissionConflictError:  # two images in one file
        model.below, model.offset = before
        return False
    return True


async def use(disk: BlockBackend, content: bytearray, rng: random.Random) -> None:
    """Read, write, zero or flush."""
    assert disk.size == len(content)
    start = rng.randrange(len(content))
    length = min(rng.choice([1, 512, 5000, 70_000]), len(content) - start)
    what = rng.random()
    if what < 0.4:
        data = rng.randbytes(8) * (length // 8 + 1)
        content[start : start + length] = data[:length]
        await write_bytes(disk, start, data[:length])
    elif what < 0.5:
        content[start : start + length] = bytes(length)
        await disk.pwrite_zeroes(start, length)
    elif what < 0.6:
        await disk.flush()
    else:
        assert await read_bytes(disk, start, length) == content[start : start + length]


@pytest.mark.parametrize("seed", range(4))
def test_random_changes_lose_nothing(tmp_path: Path, seed: int) -> None:
    make_all(tmp_path)
    rng, model = random.Random(seed), Model()
    done = [0, 0]

    async def main() -> None:
        files = [file(tmp_path, name) for name in ("a", "b", "c", "both")]
        nodes = [model.definition(node) for node in ("r", *THROTTLES, *DISKS)]
        async with graph_of(*files, *nodes) as graph:
            disks = {name: user(graph, name) for name in DISKS}
            for _ in range(60):
                for _ in range(6):
                    name = rng.choice(DISKS)
                    await use(disks[name], model.disks[model.image(name)], rng)
                done[await reopen(graph, model, rng)] += 1
                for node, below in model.below.items():
                    assert graph.find(node).children["file"].node.node_name == below

    run(main)
    assert min(done) > 0
    both = (tmp_path / "both").read_bytes()
    (tmp_path / "low").write_bytes(both[:HALF])
    (tmp_path / "high").write_bytes(both[HALF:])
    for name, content in model.disks.items():
        check_image(tmp_path / name)
        qemu_img("convert", "-f", "qcow2", "-O", "raw", tmp_path / name, tmp_path / "raw")
        assert (tmp_path / "raw").read_bytes() == content, name

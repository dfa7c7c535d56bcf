# SPDX-License-Identifier: Apache-2.0
"""Images that vhostblk writes are right: QEMU finds nothing wrong and reads the same."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from integration.qcow2.tools import (
    agree,
    check,
    content,
    opened,
    qemu_img,
    qemu_io,
    read,
    run,
    sectors,
    sectors_by_qemu,
    write,
)
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.iovec import IoVec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.graph.backend import BlockBackend

FORMATS = [
    "compat=0.10",
    "compat=1.1",
    "cluster_size=512",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=1k,refcount_bits=1",
    "cluster_size=4k,refcount_bits=2",
    "cluster_size=2M,refcount_bits=8",
    "cluster_size=64k,refcount_bits=32,lazy_refcounts=on",
    "extended_l2=on,cluster_size=16k",
    "extended_l2=on,cluster_size=64k",
    "extended_l2=on,cluster_size=2M",
    "compression_type=zstd",
]
#: No multiple of any cluster.
SIZE = (5 << 19) + 1536

#: How many images; more of them take longer.
EXAMPLES = int(os.environ.get("VHOSTBLK_QCOW2_EXAMPLES", "25"))

Operation = tuple[str, int, int, int]


def operations() -> st.SearchStrategy[list[list[Operation]]]:
    """Return bursts of operations: kind, offset, length, byte."""
    place = st.one_of(
        st.integers(0, SIZE - 1),
        st.integers(0, SIZE // 512 - 1).map(lambda sector: sector * 512),
        st.integers(0, SIZE // 65536).map(lambda cluster: cluster * 65536),
    )
    length = st.one_of(
        st.integers(1, 3000), st.sampled_from([512, 4096, 16384, 65536, 131072, 600_000])
    )
    kind = st.sampled_from(
        ["write"] * 6 + ["compressed"] * 2 + ["zero", "unmap", "discard", "read", "flush"]
    )
    operation = st.tuples(kind, place, length, st.integers(1, 255))
    return st.lists(st.lists(operation, min_size=1, max_size=8), min_size=1, max_size=8)


class Model:
    """What the disk has to have; discarded bytes are unknown (-1)."""

    def __init__(self, data: bytes) -> None:
        self.data: NDArray[np.int16] = np.frombuffer(data, np.uint8).astype(np.int16)
        self.first = self.data.copy()

    def matches(self, offset: int, data: bytes) -> bool:
        known = self.data[offset : offset + len(data)]
        return bool(((known == -1) | (known == np.frombuffer(data, np.uint8))).all())

    def fill(self, offset: int, length: int, byte: int) -> None:
        self.data[offset : offset + length] = byte


async def perform(backend: BlockBackend, model: Model, burst: list[Operation]) -> None:
    """Do operations of a burst that don't overlap side by side, others not at all."""
    taken: list[tuple[int, int]] = []
    running: list[Any] = []
    for kind, at, wanted, byte in burst:
        offset, length = at, min(wanted, SIZE - at)
        if kind == "compressed":
            size = backend.node.cluster_size
            offset = at // size * size
            length = min(-(-length // size) * size, SIZE - offset)
        if any(offset < stop and start < offset + length for start, stop in taken):
            continue
        taken.append((offset, offset + length))
        running.append(_one(backend, model, kind, offset, length, byte))
    await asyncio.gather(*running)


async def _one(
    backend: BlockBackend, model: Model, kind: str, offset: int, length: int, byte: int
) -> None:
    if kind == "write":
        await write(backend, offset, bytes([byte]) * length)
        model.fill(offset, length, byte)
    elif kind == "read":
        assert model.matches(offset, await read(backend, offset, length))
    elif kind == "compressed":
        data = _compressible(length, byte, backend.node.cluster_size)
        iov = IoVec.from_buffers([bytearray(data)])
        await backend.pwritev(offset, iov, WriteFlags.WRITE_COMPRESSED)
        model.data[offset : offset + length] = np.frombuffer(data, np.uint8)
    elif kind == "flush":
        await backend.flush()
    elif kind == "discard":
        await backend.pdiscard(offset, length)
        model.fill(offset, length, -1)
    else:
        flags = WriteFlags.MAY_UNMAP if kind == "unmap" else WriteFlags.NONE
        await backend.pwrite_zeroes(offset, length, flags)
        model.fill(offset, length, 0)


def _compressible(length: int, byte: int, cluster: int) -> bytes:
    """Return data with clusters that get much shorter, hardly, or not at all."""
    rng = random.Random(byte)
    pattern = b"".join(
        rng.randbytes(noise) + bytes([byte]) * (cluster - noise)
        for noise in (0, cluster // 2, cluster * 9 // 10, cluster, 20)
    )
    return (pattern * (length // len(pattern) + 1))[:length]


def _create(directory: Path, form: str, state: str) -> tuple[Path, bytes]:
    """Make an image, perhaps with a backing file, data or a snapshot; return what it has."""
    path = directory / "disk.qcow2"
    arguments: list[object] = ["create", "-q", "-f", "qcow2", "-o", form]
    if state == "backing":
        base = directory / "base.raw"
        base.write_bytes(bytes(range(1, 256)) * 8000)
        arguments += ["-b", base, "-F", "raw"]
    qemu_img(*arguments, path, SIZE)
    if state in ("data", "snapshot", "compressed"):
        qemu_io(path, "write -q -P 170 100k 300k", "write -q -P 85 1M 64k", "discard -q 1M 16k")
    if state == "snapshot" and "refcount_bits=1" not in form:
        qemu_img("snapshot", "-c", "s", path)
    if state == "compressed":
        packed = directory / "packed.qcow2"
        qemu_img("convert", "-c", "-f", "qcow2", "-O", "qcow2", "-o", form, path, packed)
        packed.rename(path)
    return path, content(path, directory / "raw")


@pytest.mark.timeout(60 + 30 * EXAMPLES)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes minutes
)
@given(
    form=st.sampled_from(FORMATS),
    state=st.sampled_from(["empty", "data", "backing", "snapshot", "compressed"]),
    bursts=operations(),
    caches=st.sampled_from([{}, {"l2_cache_size": 1024, "l2_cache_entry_size": 512}]),
    unmap=st.booleans(),
)
def test_images_are_right_after_any_operations(
    form: str, state: str, bursts: list[list[Operation]], caches: dict[str, int], unmap: bool
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as where:
        directory = Path(where)
        path, before = _create(directory, form, state)
        model = Model(before)

        async def main() -> bytes:
            members: dict[str, Any] = {**caches, "discard": "unmap" if unmap else "ignore"}
            async with opened(path, **members) as (_, backend):
                for burst in bursts:
                    await perform(backend, model, burst)
                return await read(backend, 0, SIZE)

        seen = run(main())
        assert model.matches(0, seen)
        check(path)
        assert content(path, directory / "raw") == seen

        async def again() -> None:
            async with opened(path, Perm.CONSISTENT_READ) as (node, backend):
                assert await read(backend, 0, SIZE) == seen
                if state != "backing":
                    assert agree(await sectors(node, SIZE), sectors_by_qemu(path))

        run(again())
        if state == "snapshot" and "refcount_bits=1" not in form:
            qemu_img("snapshot", "-a", "s", path)
            assert content(path, directory / "raw") == before


@pytest.mark.parametrize("raw", ["on", "off"])
def test_external_data_files_are_written(tmp_path: Path, raw: str) -> None:
    path, data = tmp_path / "disk.qcow2", tmp_path / "data.raw"
    form = f"data_file={data},data_file_raw={raw}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, SIZE)
    model = Model(bytes(SIZE))
    bursts: list[list[Operation]] = [
        [("write", 1000, 70000, 3), ("write", 200_000, 4096, 4), ("zero", 400_000, 200_000, 0)],
        [("unmap", 0, 65536, 0), ("write", 450_000, 10, 9), ("write", SIZE - 5, 5, 8)],
        [("discard", 131072, 65536, 0), ("read", 0, 300_000, 0)],
    ]

    async def main() -> bytes:
        async with opened(path, discard="unmap") as (_, backend):
            for burst in bursts:
                await perform(backend, model, burst)
            return await read(backend, 0, SIZE)

    seen = run(main())
    assert model.matches(0, seen)
    check(path)
    assert content(path, tmp_path / "raw") == seen
    if raw == "on":
        assert data.read_bytes()[:SIZE] == seen


@pytest.mark.parametrize("form", ["cluster_size=4k", "extended_l2=on", "cluster_size=512"])
@pytest.mark.parametrize("backed", [False, True])
def test_disks_grow_and_shrink(tmp_path: Path, form: str, backed: bool) -> None:
    path = tmp_path / "disk.qcow2"
    arguments: list[object] = ["create", "-q", "-f", "qcow2", "-o", form]
    if backed:
        base = tmp_path / "base.raw"
        base.write_bytes(b"\x77" * (8 << 20))
        arguments += ["-b", base, "-F", "raw"]
    qemu_img(*arguments, path, SIZE)

    async def main() -> bytes:
        async with opened(path) as (node, backend):
            await write(backend, SIZE - 3000, b"a" * 3000)
            await backend.truncate(SIZE + 512)
            assert node.size == SIZE + 512
            assert await read(backend, SIZE - 1, 513) == b"a" + bytes(512)
            await backend.truncate(6 << 20)
            assert await read(backend, SIZE, (6 << 20) - SIZE) == bytes((6 << 20) - SIZE)
            await write(backend, 5 << 20, b"b" * 70000)
            await backend.truncate(1 << 20)
            await backend.truncate(3 << 20)
            assert await read(backend, 1 << 20, 2 << 20) == bytes(2 << 20)
            await write(backend, 2 << 20, b"c" * 4096)
            with pytest.raises(OSError, match="The new size must be a multiple of 512"):
                await backend.truncate(1000)
            return await read(backend, 0, 3 << 20)

    seen = run(main())
    check(path)
    assert content(path, tmp_path / "raw") == seen

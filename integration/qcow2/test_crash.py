# SPDX-License-Identifier: Apache-2.0
"""An image is consistent wherever the machine stops, and what was flushed is there.

What a run writes to its file is recorded. It is cut at many points, and writes that were not
flushed by then are there or not, in part or whole.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from integration.qcow2.record import Change, RecordingNode, crash, opened_on
from integration.qcow2.test_write import FORMATS, Model, Operation, perform
from integration.qcow2.tools import content, qemu_img, qemu_io, run, write
from vhostblk.block.graph.node import BlockStatus

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.node import Qcow2Node
    from vhostblk.block.graph.backend import BlockBackend

SIZE = (5 << 19) + 1536
CUTS = 4


def _bursts(rng: random.Random) -> list[list[Operation]]:
    kinds = ["write"] * 6 + ["compressed"] * 2 + ["zero", "unmap", "discard"]
    lengths = [512, 4096, 65536, 131072]
    return [
        [
            (
                rng.choice(kinds),
                rng.randrange(SIZE // 512) * 512,
                rng.choice(lengths),
                rng.randrange(1, 255),
            )
            for _ in range(rng.randrange(1, 6))
        ]
        for _ in range(10)
    ]


class _Flushed:
    """The disk as it was when a flush had completed, and where the log was then."""

    def __init__(self, position: int, data: NDArray[np.int16]) -> None:
        self.position = position
        self.data = data


class _Recorded(NamedTuple):
    """What a run has written, and what can be expected of it."""

    log: list[Change]
    flushed: list[_Flushed]
    #: Parts of the log in which snapshots are made and deleted: the bits "copied" and the refcounts
    #: of an image can't change at the same time, which a check finds and repairs.
    snapshots: list[range]


async def _change_snapshots(node: Qcow2Node, model: Model, what: str) -> None:
    if what == "apply":
        await node.apply_snapshot(name="s")
        model.data = model.first.copy()
    elif any(each.name == b"t" for each in node.snapshots()):
        await node.delete_snapshot(name="t")
    else:
        await node.create_snapshot("t")


async def _record(
    before: bytes, below: bytes, disk: bytes, rng: random.Random, snapshot: bool
) -> _Recorded:
    file, backing = RecordingNode(before), RecordingNode(below, "backing") if below else None
    members: dict[str, Any] = {"l2_cache_size": 4096, "l2_cache_entry_size": 512}
    async with opened_on(file, backing, discard="unmap", **members) as (node, backend):
        flushed, snapshots = await _use(file, node, backend, Model(disk), rng, snapshot)
    return _Recorded(file.log, flushed, snapshots)


async def _use(
    file: RecordingNode,
    node: Qcow2Node,
    backend: BlockBackend,
    model: Model,
    rng: random.Random,
    snapshot: bool,
) -> tuple[list[_Flushed], list[range]]:
    flushed, snapshots = [_Flushed(0, model.data.copy())], []
    for burst in _bursts(rng):
        touched = model.data.copy()
        await perform(backend, model, burst)
        # Until the next flush these bytes are what they were or what they are.
        flushed[-1].data[touched != model.data] = -1
        if snapshot and rng.random() < 0.3:
            what, start, touched = rng.choice(["apply", "change"]), len(file.log), model.data.copy()
            with suppress(OSError):  # the refcounts may be too narrow
                await _change_snapshots(node, model, what)
            flushed[-1].data[touched != model.data] = -1
            if what == "change":
                await backend.flush()
                snapshots.append(range(start, len(file.log)))
            flushed.append(_Flushed(len(file.log), model.data.copy()))
        if rng.random() < 0.5:
            await backend.flush()
            flushed.append(_Flushed(len(file.log), model.data.copy()))
    return flushed, snapshots


def verify(path: Path, directory: Path, expected: NDArray[np.int16], *, repair: bool) -> None:
    done = subprocess.run(
        ["qemu-img", "check", "-f", "qcow2", *(["-r", "all"] if repair else []), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 3), done.stdout + done.stderr  # 3: leaks
    model = Model(b"")
    model.data = expected
    assert model.matches(0, content(path, directory / "raw"))


@pytest.mark.parametrize(
    ("form", "state"),
    [
        (form, state)
        for form in FORMATS
        for state in ("plain", "snapshot", "backing")
        if state != "snapshot" or "refcount_bits=1" not in form  # which has no room for them
    ],
)
def test_a_crash_at_any_point_costs_nothing(tmp_path: Path, form: str, state: str) -> None:
    """`backing`: parts that are not allocated, or not yet, don't read as zeroes."""
    snapshot = state == "snapshot"
    path, base = tmp_path / "disk.qcow2", tmp_path / "base"
    below = random.Random("base").randbytes(SIZE) if state == "backing" else b""
    base.write_bytes(below)
    over = ["-b", base, "-F", "raw"] if below else []
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, *over, path, SIZE)
    qemu_io(path, "write -q -P 170 100k 300k", "write -q -P 85 1M 64k")
    if snapshot:
        qemu_img("snapshot", "-c", "s", path)
    before = path.read_bytes()
    rng = random.Random(f"{form} {state}")
    recorded = run(_record(before, below, content(path, tmp_path / "raw"), rng, snapshot))
    for _ in range(CUTS):
        cut = rng.randrange(len(recorded.log) + 1)
        path.write_bytes(crash(before, recorded.log[:cut], rng))
        known = [each for each in recorded.flushed if each.position <= cut][-1]
        repair = "lazy" in form or any(cut in part for part in recorded.snapshots)
        verify(path, tmp_path, known.data, repair=repair)


STREAM_SIZE = 8 << 20
#: How long the stream gets, in steps; from 4 MiB on it is given clusters in advance.
STREAM_STEP = 384 << 10
STREAM_STOP = 15 * STREAM_STEP
_STREAM_FORMS = ["cluster_size=64k", "cluster_size=4k,lazy_refcounts=on"]


async def _record_stream(before: bytes, rng: random.Random) -> tuple[_Recorded, bool]:
    """Write one cluster behind the other; tell also whether some were there before their turn."""
    file = RecordingNode(before)
    model = Model(bytes(STREAM_SIZE))
    flushed, ahead = [_Flushed(0, model.data.copy())], False
    async with opened_on(file) as (node, backend):
        await write(backend, STREAM_SIZE - 512, b"x" * 512)  # looks for free clusters
        model.fill(STREAM_SIZE - 512, 512, ord("x"))
        flushed[-1].data[STREAM_SIZE - 512 :] = -1
        for start in range(0, STREAM_STOP, STREAM_STEP):
            byte = start // STREAM_STEP + 1
            places = range(start, start + STREAM_STEP, STREAM_STEP // 3)
            data = bytes([byte]) * (STREAM_STEP // 3)
            await asyncio.gather(*(write(backend, place, data) for place in places))
            model.fill(start, STREAM_STEP, byte)
            flushed[-1].data[start : start + STREAM_STEP] = -1
            if rng.random() < 0.3:
                await backend.flush()
                flushed.append(_Flushed(len(file.log), model.data.copy()))
            extent = await node.block_status(start + STREAM_STEP, 1)
            ahead |= bool(extent.status & BlockStatus.ALLOCATED)
    return _Recorded(file.log, flushed, []), ahead


@pytest.mark.parametrize("form", _STREAM_FORMS)
def test_a_crash_in_a_stream_costs_nothing(tmp_path: Path, form: str) -> None:
    """The log is cut at every point: what is there in advance reads as zeroes, or is not there."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, STREAM_SIZE)
    before, rng = path.read_bytes(), random.Random(form)
    recorded, ahead = run(_record_stream(before, rng))
    assert ahead
    cuts = list(range(len(recorded.log) + 1))
    if "lazy" not in form:  # just before a flush most can be there in part
        cuts += 4 * [cut for cut, change in enumerate(recorded.log) if change is None]
    for cut in cuts:
        path.write_bytes(crash(before, recorded.log[:cut], rng))
        known = [each for each in recorded.flushed if each.position <= cut][-1]
        verify(path, tmp_path, known.data, repair="lazy" in form)

# SPDX-License-Identifier: Apache-2.0
"""Checks image files against the model: their structures and their content."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.model import images, qcow2_reader, sparse
from tests.model.content import SECTOR
from tests.model.crash import Cut, state

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from tests.model.disk import View
    from tests.model.stack import Layer, Stack
    from tests.model.world import DiskState, World

    #: Returns the content of a file.
    Load = Callable[[Path], NDArray[np.uint8]]


class FileError(AssertionError):
    """An image file is wrong."""


class _Files:
    """The files of one disk, at one moment."""

    def __init__(self, stack: Stack, load: Load) -> None:
        self._stack = stack
        self._load = load
        self._images: dict[str, qcow2_reader.Image] = {}

    def image(self, layer: Layer) -> qcow2_reader.Image:
        """Return a qcow2 image."""
        known = self._images.get(layer.node)
        if known is None:
            stack, data = self._stack, None
            first = layer is stack.layers[0]
            if first and stack.options.data_file:
                data = self._load(stack.directory / images.DATA)
            content = self._load(layer.path)[stack.offset if first else 0 :]
            known = self._images[layer.node] = qcow2_reader.Image(content, data)
        return known

    def below(self, layer: Layer) -> NDArray[np.uint8] | None:
        """Return the content of the layer's backing image; None: it has none."""
        stack = self._stack
        index = stack.layers.index(layer)
        if index:
            return self.content(stack.layers[index - 1])
        if not stack.options.backing:
            return None
        base = self._load(stack.directory / images.BASE)
        if stack.options.backing_format == "raw":
            return base
        return qcow2_reader.Image(base).content()

    def content(self, layer: Layer) -> NDArray[np.uint8]:
        """Return the content of a layer."""
        if layer.format == "raw":
            stack = self._stack
            content = self._load(layer.path)[stack.offset :]
            return content[: len(content) // SECTOR * SECTOR]
        return self.image(layer).content(self.below(layer))


def judge_files(world: World, *, qemu: bool) -> None:
    """Check the files of all disks while nothing uses them."""
    for disk in world.disks:
        files = _Files(disk.stack, sparse.load)
        for layer in disk.stack.layers:
            name = layer.path.name
            view = layer.frozen or disk.model.view()
            _compare(disk, view, files.content(layer), name)
            if layer.format == "qcow2":
                _check_snapshots(disk, layer, files)
                _check_structures(files.image(layer), name, leaky=layer.leaky)
        if disk.stack.options.data_file == "raw":
            view = disk.stack.layers[0].frozen or disk.model.view()
            for change in disk.model.changes:
                if change.failed:  # the file may have data that no table refers to
                    view.seen_at[change.clip(view.size)] = -1
            # The file has whole clusters; the disk's size need not be a multiple.
            content = sparse.load(disk.stack.directory / images.DATA)[: view.size * SECTOR]
            _compare(disk, view, content, "the data file")
        # QEMU can't open all filters by the backing file names that overlays contain.
        if qemu and not (disk.stack.filtered and len(disk.stack.layers) > 1):
            _ask_qemu(disk, files)


def _check_structures(
    image: qcow2_reader.Image, name: str, *, leaky: bool, copied: bool = True
) -> None:
    if image.corrupt:
        raise FileError(f"{name} was marked corrupt")
    findings = image.check()
    wrong = findings.corruptions + findings.low + (findings.copied if copied else [])
    if wrong:
        raise FileError(f"{name}: {len(wrong)} errors: {'; '.join(wrong[:4])}")
    if findings.leaks and not leaky:
        raise FileError(f"{name}: {len(findings.leaks)} leaks: {findings.leaks[:8]}")


def _check_snapshots(disk: DiskState, layer: Layer, files: _Files) -> None:
    image = files.image(layer)
    found = {each.name: each for each in image.snapshots}
    if set(found) != set(layer.snapshots):
        raise FileError(f"snapshots {sorted(found)}, not {sorted(layer.snapshots)}")
    for name, view in layer.snapshots.items():
        content = image.content(files.below(layer), found[name])
        _compare(disk, view, content, f"snapshot {name}")


def _compare(disk: DiskState, view: View, content: NDArray[np.uint8], name: str) -> None:
    if len(content) != view.size * SECTOR:
        raise FileError(f"{name} has {len(content)} bytes, not {view.size * SECTOR}")
    try:
        disk.model.check(view, 0, content)
    except AssertionError as error:
        raise FileError(f"{name}: {error}") from error


def _ask_qemu(disk: DiskState, files: _Files) -> None:
    """Let QEMU check all images, and read the active one."""
    stack = disk.stack
    if stack.offset:
        return
    for layer in stack.layers:
        if layer.format != "qcow2":
            continue
        words = ["qemu-img", "check", "-f", "qcow2", str(layer.path)]
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, cwd=stack.directory
        )
        if done.returncode not in ((0, 3) if layer.leaky else (0,)):
            raise FileError(f"{layer.path.name}: qemu-img check: {done.stdout}{done.stderr}")
    raw = stack.directory / "qemu.raw"
    active = stack.active
    words = ["convert", "-f", active.format, "-O", "raw", str(active.path), str(raw)]
    images.qemu_img(*words, cwd=stack.directory)
    seen = sparse.load(raw)
    raw.unlink()
    ours = files.content(active)
    if len(seen) != len(ours) or (seen != ours).any():
        raise FileError(f"{active.path.name}: QEMU reads something else than we do")


# Power cuts.


def judge_cuts(world: World, rng: random.Random, count: int) -> None:
    """Check the files after power cuts at some moments of a recorded run."""
    latest = world.moments[-1]
    exact = not world.express
    for number in range(count):
        if number == 0:
            time = latest
        else:
            time = rng.randrange(world.since, latest) if exact else rng.choice(world.moments)
        if any(start <= time < end for start, end, what in world.periods if what in _UNSURE):
            continue
        cut = rng.choice(list(Cut))
        seed = rng.getrandbits(32)
        try:
            _judge_cut(world, time, cut, seed)
        except AssertionError as error:
            raise FileError(f"after a cut at {time} ({cut.value}, seed {seed}): {error}") from error


#: Acts during which a disk may have its old or its new state.
_UNSURE = ("resize", "apply_snapshot", "crash", "swap", "restart", "delete_snapshot")


def _judge_cut(world: World, time: int, cut: Cut, seed: int) -> None:
    import random

    disk = world.disks[0]
    rng = random.Random(seed)

    def load(path: Path) -> NDArray[np.uint8]:
        file = world.yard.files.get(str(path))
        return sparse.load(path) if file is None else state(file, time, cut, rng)

    stack = disk.stack
    files = _Files(stack, load)
    count = [count for at, count in world.chains if at <= time][-1]
    layers = stack.layers[:count]
    changing = any(
        start <= time < end for start, end, what in world.periods if what in ("snapshot",)
    )
    for layer in layers:
        if layer.format != "qcow2":
            continue
        image = files.image(layer)
        if not image.dirty:
            _check_structures(image, layer.path.name, leaky=True, copied=not changing)
    view = disk.model.after_cut(time)
    _compare(disk, view, files.content(layers[-1]), layers[-1].path.name)
    for layer in layers[:-1]:
        assert layer.frozen is not None
        _compare(disk, layer.frozen, files.content(layer), layer.path.name)

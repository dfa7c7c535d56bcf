# SPDX-License-Identifier: Apache-2.0
"""The acts of a program: an administrator's actions, and events such as crashes.

Each act is a method. Most are QMP commands that must succeed. If a command may be refused, the
refusal must change nothing, which the next reads check.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.block.support import read_bytes
from tests.model import images, sparse
from tests.model.bitmaps import BitmapModel
from tests.model.content import SECTOR
from tests.model.crash import Cut, state
from tests.model.judge import judge_files
from tests.model.program import BLKDEBUG_BLOCK
from tests.model.stack import COPIES, CommandError, Layer
from tests.model.world import EXPORT
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.permissions import Perm
from vhostblk.virtio_blk.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.model.disk import View
    from tests.model.program import Act
    from tests.model.world import DiskState, World

#: Length of each read from a snapshot, in bytes.
_CHUNK = 1 << 20


class ChangeError(AssertionError):
    """A change had a wrong result."""


def _existing(known: Mapping[str, object], name: str) -> str:
    """Return `name` if it is known, else a known name; empty: there is none."""
    return name if name in known else min(known, default="")


class Changes:
    """The acts; each is called with its arguments from the program."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: For each `copy-before-write` filter: its access node, and the expected view of that node.
        self._kept: dict[str, tuple[str, View]] = {}

    async def perform(self, act: Act) -> None:
        """Perform an act."""
        world = self._world
        start = world.clock.tick()
        await getattr(self, act.name)(**act.arguments)
        world.periods.append((start, world.clock.tick(), act.name))

    @property
    def _disk(self) -> DiskState:
        return self._world.disks[0]

    @property
    def _copies(self) -> bool:
        options = self._world.options
        return any(kind in COPIES for kind in (*options.above, *options.below))

    # The cache, and the lane.

    async def cache(self, *, on: bool, disk: int = 0) -> None:
        """Turn the write cache on or off."""
        disks = self._world.disks
        await self._world.set_write_cache(disks[disk % len(disks)], enabled=on)

    async def lane(self, *, name: str) -> None:
        """Move the queues to the other lane."""
        export: Any = self._world.daemon.exports.get(EXPORT)
        if export is not None:
            self._world.express |= name == "express"
            await export.device.switch_lane(Lane(name))

    # Options, and length.

    async def reopen(self, **members: Any) -> None:
        """Reopen the image with other options."""
        stack = self._disk.stack
        if stack.active.format != "qcow2":
            return
        stack.members |= members
        error = await stack.reopen()
        if error:
            raise CommandError(f"blockdev-reopen {members}: {error}")

    async def resize(self, *, size: int) -> None:
        """Change the disk's length; it may be refused."""
        world, disk = self._world, self._disk
        options, layer = world.options, disk.stack.active
        fixed = self._copies or "window" in options.above or "window" in options.below
        if fixed or (layer.format == "raw" and disk.stack.below):
            return
        size = max(size // options.block * options.block, options.block)
        old = disk.model.size
        refusals = world.yard.refusals
        gone = None
        if size < old:  # sectors past the new end may be discarded at any time from now on
            gone = disk.model.begin(size, old - size, 0, discard=True)
        start = world.clock.tick()
        arguments = {"node-name": layer.node, "size": size * SECTOR}
        error = await disk.stack.command("block_resize", arguments)
        now = world.daemon.graph.find(layer.node).size // SECTOR
        if gone is not None:
            disk.model.end(gone, failed=bool(error))
        if now != (old if error else size):
            raise ChangeError(f"resize from {old} to {size}: {error or 'success'}, now {now}")
        if error:
            # The size must not change below a filter that keeps overwritten data either.
            keeps = "copy-before-write" in options.above or self._kept
            refused = refusals != world.yard.refusals
            may_fail = disk.bitmaps or layer.snapshots or keeps or refused
            if not may_fail:
                raise CommandError(f"block_resize {arguments}: {error}")
            return
        disk.model.resized(start, size)
        for bitmap in disk.bitmaps.values():
            bitmap.resize(size)

    # Snapshots.

    @contextmanager
    def _snapshot_errors(self) -> Iterator[None]:
        """Allow a change of snapshots to fail if refcounts are too narrow, or files full."""
        world = self._world
        refusals = world.yard.refusals
        try:
            yield
        except (OSError, BlockError) as error:
            narrow = world.options.refcount_bits < 16
            if not narrow and refusals == world.yard.refusals:
                raise ChangeError(f"snapshot: {error}") from error

    def _node(self) -> Any:
        return self._world.daemon.graph.find(self._disk.stack.active.node)

    async def snapshot(self, *, name: str) -> None:
        """Make an internal snapshot."""
        disk = self._disk
        layer = disk.stack.active
        if layer.format != "qcow2" or name in layer.snapshots or self._world.options.data_file:
            return
        with self._snapshot_errors():
            async with self._world.daemon.graph.changing():
                view = disk.model.view()
                await self._node().create_snapshot(name)
                disk.model.finish(view)
            layer.snapshots[name] = view

    async def delete_snapshot(self, *, name: str) -> None:
        """Delete an internal snapshot."""
        layer = self._disk.stack.active
        if name := _existing(layer.snapshots, name):
            view = layer.snapshots.pop(name)
            with self._snapshot_errors():
                try:
                    async with self._world.daemon.graph.changing():
                        await self._node().delete_snapshot(name=name)
                except OSError:
                    if any(each.name == name.encode() for each in self._node().snapshots()):
                        layer.snapshots[name] = view
                    raise

    async def apply_snapshot(self, *, name: str) -> None:
        """Go back to an internal snapshot."""
        disk = self._disk
        layer = disk.stack.active
        name = _existing(layer.snapshots, name)
        if not name or disk.bitmaps or self._copies:
            return
        start = self._world.clock.tick()
        async with self._world.daemon.graph.changing():
            await self._node().apply_snapshot(name=name)
            disk.model.return_to(start, layer.snapshots[name])

    async def overlay(self, *, sync: bool = False) -> None:
        """Make an external snapshot: an overlay replaces the image."""
        world, disk = self._world, self._disk
        stack, below = disk.stack, disk.stack.active
        if len(stack.layers) > 3 or self._copies or disk.bitmaps:
            return
        number = len(stack.layers)
        path = stack.directory / f"{stack.name}-overlay{number}.qcow2"
        layer = Layer("qcow2", path, f"{stack.name}-{number}", f"{stack.name}-file-{number}")
        view, refusals = disk.model.view(), world.yard.refusals
        add = self._add_new_overlay if sync else self._add_overlay
        try:
            await add(below, layer)
        except CommandError:
            if refusals == world.yard.refusals:
                raise
            return
        disk.model.finish(view)
        below.frozen = view
        stack.layers.append(layer)
        world.chains.append((world.clock.tick(), len(stack.layers)))

    async def _add_new_overlay(self, below: Layer, layer: Layer) -> None:
        """Let the command create the overlay."""
        stack = self._disk.stack
        await stack.do(
            "blockdev-snapshot-sync",
            node_name=below.node,
            snapshot_file=str(layer.path),
            snapshot_node_name=layer.node,
            format="qcow2",
        )
        node = self._world.daemon.graph.find(layer.node)
        layer.file = node.children["file"].node.node_name
        layer.transient = True

    async def _add_overlay(self, below: Layer, layer: Layer) -> None:
        """Make an existing image the overlay of the image below."""
        disk = self._disk
        stack = disk.stack
        images.make_overlay(layer.path, stack.options, below.path, below.format, disk.model.size)
        await stack.do("blockdev-add", **stack.file_definition(layer.path, layer.file))
        definition = {**stack.format_definition(below, layer.file), "node-name": layer.node}
        definition.pop("data-file", None)
        await stack.do("blockdev-add", **definition | {"driver": "qcow2", "backing": None})
        try:
            await stack.do("blockdev-snapshot", node=below.node, overlay=layer.node)
        except CommandError:
            for name in (layer.node, layer.file):
                await stack.do("blockdev-del", node_name=name)
            raise

    # Filters.

    async def insert_above(self, *, kind: str) -> None:
        """Insert a filter below the top node."""
        disk = self._disk
        stack = disk.stack
        if not stack.options.top or len(stack.above) > 4:
            return
        child = stack.above[-1] if stack.above else stack.active.node
        if kind == "compress" and stack.above:
            return
        name = await stack.add_filter(kind, child, below=False)
        view = disk.model.view()
        error = await stack.put_above(name)
        if error:
            await stack.remove_filter(name)
            raise CommandError(f"{kind}: {error}")
        stack.above.append(name)
        if kind == "copy-before-write":
            disk.model.finish(view)
            access = f"{name}-access"
            access_options = {"driver": "snapshot-access", "node_name": access, "file": name}
            await stack.do("blockdev-add", **access_options, read_only=True)
            self._kept[name] = (access, view)

    async def remove_above(self) -> None:
        """Remove the topmost filter."""
        stack = self._disk.stack
        if not stack.options.top or len(stack.above) <= len(stack.options.above):
            return
        await self.read_kept()
        name = stack.above.pop()
        child = stack.above[-1] if stack.above else stack.active.node
        if name in self._kept:  # while the filter has a parent, its child may have no other writer
            access, _ = self._kept.pop(name)
            await stack.do("blockdev-del", node_name=access)
        error = await stack.put_above(child)
        if error:
            raise CommandError(f"removing {name}: {error}")
        await stack.remove_filter(name)

    async def read_kept(self) -> None:
        """Read and check the snapshots of `copy-before-write` filters."""
        world, disk = self._world, self._disk
        for access, view in self._kept.values():
            backend = BlockBackend("judge", Perm.CONSISTENT_READ)
            backend.attach(world.daemon.graph, world.daemon.graph.find(access))
            try:
                for at in range(0, view.size * SECTOR, _CHUNK):
                    length = min(_CHUNK, view.size * SECTOR - at)
                    data = await read_bytes(backend, at, length)
                    first = at // SECTOR
                    disk.model.check(view.part(first, len(data) // SECTOR), first, data)
            finally:
                await backend.detach()

    async def insert_below(self, *, kind: str) -> None:
        """Insert a filter between the image and its file."""
        stack = self._disk.stack
        layer = stack.active
        if layer.file.startswith("#") or layer is not stack.layers[0] or len(stack.below) > 3:
            return
        if layer.format == "raw" and kind == "blkdebug" and self._disk.model.size % BLKDEBUG_BLOCK:
            return  # without growing, the last block can't be written
        child = stack.below[-1] if stack.below else layer.file
        name = await stack.add_filter(kind, child, below=True)
        stack.below.append(name)
        error = await stack.reopen()
        if error:
            stack.below.pop()
            await stack.remove_filter(name)
            raise CommandError(f"{kind} below: {error}")

    async def remove_below(self) -> None:
        """Remove the filter right below the image."""
        stack = self._disk.stack
        if stack.active is not stack.layers[0] or len(stack.below) <= len(stack.options.below):
            return
        name = stack.below.pop()
        error = await stack.reopen()
        if error:
            raise CommandError(f"removing {name}: {error}")
        await stack.remove_filter(name)

    async def swap(self) -> None:
        """Swap the files of two images in one command; it may be refused."""
        disks = self._world.disks
        if len(disks) < 2:
            return
        one, other = disks
        first, second = one.stack, other.stack
        if len(first.layers) + len(second.layers) > 2 or first.below or one.bitmaps:
            return
        mine, theirs = first.active, second.active
        if mine.snapshots or theirs.snapshots:
            return
        definitions = [
            first.format_definition(mine, theirs.file),
            second.format_definition(theirs, mine.file),
        ]
        if await first.command("blockdev-reopen", {"options": definitions}):
            return
        one.model, other.model = other.model, one.model
        mine.path, theirs.path = theirs.path, mine.path
        mine.file, theirs.file = theirs.file, mine.file

    # Bitmaps.

    async def bitmap(self, *, name: str, granularity: int, persistent: bool = False) -> None:
        """Add a dirty bitmap."""
        disk = self._disk
        stack = disk.stack
        if name in disk.bitmaps:
            return
        persistent = persistent and stack.active.format == "qcow2" and stack.options.version == 3
        arguments = {"node": stack.active.node, "name": name, "granularity": granularity}
        model = BitmapModel(disk.model.size, granularity, persistent=persistent)
        disk.bitmaps[name] = model
        refusals = self._world.yard.refusals
        error = await stack.command(
            "block-dirty-bitmap-add", {**arguments, "persistent": persistent}
        )
        model.since = self._world.clock.tick()
        if error:
            del disk.bitmaps[name]
            if refusals == self._world.yard.refusals:
                raise CommandError(f"bitmap {arguments}: {error}")

    async def bitmap_do(self, *, name: str, what: str) -> None:
        """Remove, clear, enable or disable a dirty bitmap; no request is in flight."""
        disk = self._disk
        name = _existing(disk.bitmaps, name)
        if not name:
            return
        model = disk.bitmaps[name]
        await disk.stack.do(f"block-dirty-bitmap-{what}", node=disk.stack.active.node, name=name)
        match what:
            case "remove":
                del disk.bitmaps[name]
            case "clear":
                model.clear()
            case _:
                model.enabled = what == "enable"

    def check_bitmaps(self) -> None:
        """Compare all bitmaps with the model; no request is in flight."""
        node, model = self._node(), self._disk.model
        for name, bitmap in self._disk.bitmaps.items():
            found = next(each for each in node.bitmaps if each.name == name)
            bits = np.unpackbits(found.words.view(np.uint8), bitorder="little")
            granules = -(-model.size * SECTOR // bitmap.granularity)
            bitmap.check(name, bits[:granules].astype(np.bool_))

    # Disconnecting and connecting again.

    async def inactivate(self) -> None:
        """Inactivate the nodes, check the files as another process would, and activate again."""
        world = self._world
        stack = self._disk.stack
        if EXPORT in world.daemon.exports or world.yard.free is not None:
            return
        if stack.active.transient and stack.top == stack.active.node:
            return  # it would be lost when the guest disconnects
        starts = [world.clock.tick() for _ in world.disks]
        for disk in world.disks:
            await disk.guest.close()
        await self._disk.stack.do("blockdev-set-active", active=False)
        for disk, start in zip(world.disks, starts, strict=True):
            disk.model.flushed(start)
        judge_files(world, qemu=False)
        await self._disk.stack.do("blockdev-set-active", active=True)
        for disk in world.disks:
            disk.guest = await world.connect(disk.stack, disk.index)
            await disk.guest.set_write_cache(enabled=disk.write_cache)

    async def restart(self) -> None:
        """Stop the daemon, check the images, and start another daemon."""
        world = self._world
        await self.read_kept()
        self._kept.clear()
        await world.stop()
        judge_files(world, qemu=False)
        bitmaps = self._disk.bitmaps
        for name in [name for name, each in bitmaps.items() if not each.persistent]:
            del bitmaps[name]
        await world.start()

    async def crash(self, *, how: str, seed: int = 0) -> None:
        """Cut the power, or kill the daemon, and continue with the files that this leaves."""
        world, yard = self._world, self._world.yard
        if not world.options.cuts or self._copies:
            return
        world.note_bypassed()
        now = world.clock.tick()
        views = [disk.model.after_cut(now) for disk in world.disks]
        rng = random.Random(seed)
        left = {path: state(file, now, Cut(how), rng) for path, file in yard.files.items()}
        yard.dead = True
        world.epoch += 1
        self._kept.clear()
        await world.abandon()
        for path, content in left.items():
            sparse.save(content, yard.files[path].path)
        yard.forget()
        yard.dead = False
        for disk, view in zip(world.disks, views, strict=True):
            disk.model.cut(view)
            disk.bitmaps.clear()
            for layer in disk.stack.layers:
                layer.leaky = True
        world.begin_anew()
        await world.start()

    # Failures.

    async def space(self, *, blocks: int | None) -> None:
        """Set the number of free blocks; None: no limit."""
        self._world.yard.free = blocks

    async def fail(self, *, kind: str, count: int) -> None:
        """Make the next `count` requests of a kind fail, below the images."""
        self._world.yard.failing[kind] = count
        for disk in self._world.disks:
            for layer in disk.stack.layers:
                layer.leaky = True

    async def check(self) -> None:
        """Let the driver check the image."""
        layer = self._disk.stack.active
        if layer.format != "qcow2":
            return
        refusals = self._world.yard.refusals
        try:
            result = await self._node().check_image(repair=False)
        except OSError as error:
            if refusals == self._world.yard.refusals:
                raise ChangeError(f"check: {error}") from error
            return
        if result.corruptions or (result.leaks and not layer.leaky):
            raise ChangeError(f"check: {result}")

# SPDX-License-Identifier: Apache-2.0
"""External snapshots: an overlay takes a node's place, with the node as its backing image.

All users of the node, block backends and nodes alike, move to the overlay; their edges stay the
same objects. From then on the node is only read, so it becomes read-only.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vhostblk.block.errors import BlockError
from vhostblk.block.graph import reopen
from vhostblk.block.graph.activation import grant_backend
from vhostblk.block.graph.allocation import is_empty, links, next_image
from vhostblk.block.graph.backing_name import NamesBacking, supports_backing
from vhostblk.block.graph.data_below import who_relies_on
from vhostblk.block.graph.drain import users_of, with_ancestors, with_descendants
from vhostblk.block.graph.edge import flush_node, supported
from vhostblk.block.graph.filename import described, full_name, protocol_of
from vhostblk.block.graph.graph import check_not_backing
from vhostblk.block.graph.image_name import image_name
from vhostblk.block.graph.inherit import BACKING, FILE
from vhostblk.block.graph.new_images import MakesFiles, MakesImages, MakesOverlays
from vhostblk.block.graph.node import BlockNode
from vhostblk.block.graph.permission_update import (
    Pins,
    check_conflicts,
    cumulative,
    update_permissions,
)
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.graph.storage import check_no_loop
from vhostblk.block.registry import built_in_class
from vhostblk.errors import errors_as, reason
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.convert import from_json
from vhostblk.schema.create import BlockdevCreateOptions
from vhostblk.schema.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.graph import Graph

logger = logging.getLogger(__name__)


class OverlayAction:
    """`blockdev-snapshot`: put `overlay`, which has no backing image, on `base`; an `Action`."""

    def __init__(self, graph: Graph, base: BlockNode, overlay: BlockNode) -> None:
        self._graph = graph
        self._base = base
        self._overlay = overlay
        self._undo: list[Callable[[], None]] = []
        self._pins: Pins

    def nodes(self) -> list[BlockNode]:
        """Return both nodes."""
        return [self._base, self._overlay]

    async def prepare(self) -> None:
        """Change the graph."""
        base = self._base
        check_not_backing(base)
        if not base.read_only and base.active:
            with errors_as(BlockError, f"Write to node '{base.node_name}' failed"):
                await flush_node(base)
        self._check()
        await self._check_data()
        self._pins = Pins(with_descendants([base, self._overlay]))
        try:
            self._append()
        except BaseException:
            self._take_back()
            raise
        self._refresh()

    def _check(self) -> None:
        base, overlay = self._base, self._overlay
        if cumulative(overlay)[0] & Perm.CONSISTENT_READ:
            raise BlockError("The overlay is already in use")
        if overlay.is_filter:
            raise BlockError("Filters cannot be used as overlays")
        if BACKING in overlay.children:
            raise BlockError("The overlay already has a backing image")
        if not supports_backing(overlay):
            raise BlockError("The overlay does not support backing images")
        if overlay in with_descendants([base]):
            raise BlockError(
                f"Making '{base.node_name}' a {BACKING} child of '{overlay.node_name}' would "
                "create a cycle"
            )
        if overlay.active and not base.active:
            raise BlockError(
                f"Inactive '{base.node_name}' can't be a {BACKING} child of active "
                f"'{overlay.node_name}'"
            )
        check_no_loop(overlay, base)

    async def _check_data(self) -> None:
        """Raise BlockError if a node above keeps state of the base that the overlay replaces."""
        base, overlay = self._base, self._overlay
        above = who_relies_on(self._edges_to_move())
        if above is None:
            return
        reason = ""
        if overlay.size != base.size:
            reason = "a size"
        elif not await is_empty(overlay):
            reason = "data"
        if reason:
            raise BlockError(
                f"The overlay has {reason} of its own, but node '{above.node_name}' needs that of "
                f"'{base.node_name}'"
            )

    def _edges_to_move(self) -> list[Edge]:
        """Return the edges to move to the overlay: all users of the base, except those below it."""
        below = with_descendants([self._overlay])
        return [edge for edge in self._base.parents if edge.parent not in below]

    def _append(self) -> None:
        base, overlay = self._base, self._overlay
        moved = self._edges_to_move()
        for edge in moved:
            if edge.frozen:
                raise BlockError(
                    f"Cannot change frozen '{edge.role}' link from "
                    f"{edge.parent.description} to '{base.node_name}'"
                )
            self._undo.append(reopen.moved(edge, overlay))
        self._undo.append(reopen.added(overlay, BACKING, base))
        for edge in moved:
            if not isinstance(edge.parent, BlockNode):
                grant_backend(edge)
            elif edge.parent.active and not overlay.active:
                raise BlockError(
                    f"Inactive '{overlay.node_name}' can't be a {edge.role} child of active "
                    f"'{edge.parent.node_name}'"
                )
            check_conflicts(edge)
        for node in with_ancestors([overlay]):
            node.check_children()
        update_permissions([overlay, base])

    def _take_back(self) -> None:
        for step in reversed(self._undo):
            step()
        self._undo.clear()
        self._pins.release()
        self._refresh()

    def _refresh(self) -> None:
        reopen.refresh([self._base, self._overlay])
        for backend in users_of([self._base, self._overlay]):
            backend.child_resized()

    async def abort(self) -> None:
        """Change the graph back."""
        self._take_back()

    async def commit(self) -> None:
        """Make the base read-only. A failure does no harm, as it has no writers."""
        self._pins.release()
        try:
            await self._graph.make_read_only(self._base)
        except BlockError as error:
            logger.warning("node '%s' stays writable: %s", self._base.node_name, error)


async def rename_backing_file(graph: Graph, top: BlockNode, image: BlockNode, name: str) -> None:
    """`change-backing-file`: record another backing file in an image of the chain of `top`.

    As in QEMU, the recorded format is that of the image itself. A read-only image is made writable
    for the change. Call inside `changing()`. Raises BlockError.
    """
    if next_image(image) is None:
        raise BlockError("not allowing backing file change on an image without a backing file")
    if image is not top and all(edge.node is not image for edge in links(top)):
        raise BlockError(f"'{top.node_name}' and image file are not in the same chain")
    was_read_only = image.read_only
    await graph.make_read_only(image, read_only=False)
    try:
        with errors_as(BlockError, f"Could not change backing file to '{name}'"):
            await _naming(image).change_backing_file(name, image.driver)
    finally:
        await graph.make_read_only(image, read_only=was_read_only)


class NewOverlayAction:
    """`blockdev-snapshot-sync`: put an overlay in a file on `base`; an `Action`.

    `create`: create the file, with `base` as its backing file. It is removed if this fails.
    """

    def __init__(
        self,
        graph: Graph,
        base: BlockNode,
        filename: str,
        *,
        driver: str,
        node_name: str,
        create: bool,
    ) -> None:
        self._graph = graph
        self._base = base
        self._filename = filename
        self._driver = driver
        self._node_name = node_name
        self._create = create
        self._append: OverlayAction
        #: The action holds the overlay until others use it.
        self._holding = AsyncExitStack()
        #: The file, if it was created.
        self._new_file: Path | None = None

    def nodes(self) -> list[BlockNode]:
        """Return the base."""
        return [self._base]

    async def prepare(self) -> None:
        """Create the image, open it, and change the graph."""
        try:
            await self._prepare()
        except BaseException:
            await self._clean_up()
            raise

    async def _prepare(self) -> None:
        graph, base, path = self._graph, self._base, full_name(self._filename, "")
        if self._create:
            if path.startswith("json:"):
                raise BlockError("Unknown protocol 'json'")
            format_driver = _overlay_driver(self._driver)
            protocol_driver = _file_driver(path)
            if self._filename == image_name(base):
                raise BlockError(
                    "Error: Trying to create an image with the same filename as the backing file"
                )
            if not await asyncio.to_thread(os.path.lexists, path):
                self._new_file = Path(path)
            with errors_as(BlockError):
                await protocol_driver.make_file(path, graph)
                file = _options(described(path))
                await format_driver.make_overlay(file, base.size, graph)
        # Recording its backing file is a write.
        read_only = base.read_only and not self._create
        definition = _definition(base, path, self._driver, self._node_name, read_only=read_only)
        overlay = await self._holding.enter_async_context(graph.borrowed(definition))
        if self._create:
            await _name_backing_file(overlay, base)
            await graph.make_read_only(overlay, read_only=base.read_only)
        self._append = OverlayAction(graph, base, overlay)
        await self._append.prepare()

    async def abort(self) -> None:
        """Change the graph back, and remove the file."""
        await self._append.abort()
        await self._clean_up()

    async def _clean_up(self) -> None:
        await self._holding.aclose()
        if self._new_file is not None:
            try:
                await asyncio.to_thread(self._new_file.unlink, missing_ok=True)
            except OSError as error:
                logger.warning("'%s' can't be removed: %s", self._new_file, reason(error))

    async def commit(self) -> None:
        """Stop holding the overlay; its users keep it."""
        await self._append.commit()
        await self._holding.aclose()


def _overlay_driver(name: str) -> type[MakesOverlays]:
    """Return the format driver for an overlay; raises BlockError."""
    if BlockdevCreateOptions.find_branch(name) is None:
        raise BlockError(f"Unknown file format '{name}'")
    driver = built_in_class(name)
    if driver is not None and issubclass(driver, MakesOverlays):
        return driver
    if driver is not None and issubclass(driver, MakesImages):
        raise BlockError(f"Backing file not supported for file format '{name}'")
    raise BlockError(f"Format driver '{name}' does not support image creation")


def _file_driver(path: str) -> type[MakesFiles]:
    """Return the protocol driver that creates the file of an overlay; raises BlockError."""
    name = protocol_of(path)
    driver = built_in_class(name)
    if driver is None or not issubclass(driver, MakesFiles):
        raise BlockError(f"Protocol driver '{name}' does not support image creation")
    return driver


def _naming(image: BlockNode) -> NamesBacking:
    """Return the image's capability to record a backing file; raises OSError."""
    found: NamesBacking | None = image.capability(NamesBacking)
    return supported(found)


async def _name_backing_file(overlay: BlockNode, base: BlockNode) -> None:
    name = image_name(base)
    what = f"Could not assign backing file '{name}' with format '{base.driver}'"
    with errors_as(BlockError, what):
        await _naming(overlay).change_backing_file(name, base.driver)


def _definition(base: BlockNode, path: str, driver: str, node_name: str, *, read_only: bool) -> Any:
    """Return the options for an overlay, with the cache and access options of the base."""
    options, named = base.options, described(path)
    tree: dict[str, Any] = {
        **(named if path.startswith("json:") else {FILE: named}),
        "driver": driver,
        "node-name": node_name,
        "read-only": read_only,
        "discard": options.discard.value,
        "cache": {"direct": options.cache.direct, "no-flush": options.cache.no_flush},
    }
    made_of = built_in_class(driver)
    if made_of is not None and issubclass(made_of, NamesBacking):
        tree[BACKING] = None
    return _options(tree)


def _options(tree: dict[str, Any]) -> Any:
    """Parse the options of a node; raises BlockError."""
    with errors_as(BlockError, of=OptionError):
        return from_json(BlockdevOptions, tree)

# SPDX-License-Identifier: Apache-2.0
"""The nodes of one disk: the image and its chain, filters above and below, a raw node on top.

Everything is made and changed by QMP commands.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.model import images, sparse
from tests.model.content import SECTOR, encode
from tests.model.program import BLKDEBUG_BLOCK
from tests.qmp_block.support import execute

if TYPE_CHECKING:
    from pathlib import Path

    from tests.model.disk import View
    from tests.model.program import Options
    from vhostblk.daemon import Daemon

#: The throttle group; its limits are high, so that waits are short.
GROUP = "limits"
LIMITS = {"bps-total": 1 << 30, "iops-total": 8000}
#: Offset of the image in its file, below a raw node with an offset.
OFFSET = 1 << 20
#: Filters with several copies as children; the copies must not differ.
COPIES = ("quorum", "blkverify")


class CommandError(AssertionError):
    """A command failed that should not have."""


@dataclass(eq=False)
class Layer:
    """An image of the chain; the guest writes to the last one."""

    #: The format, and the image's file.
    format: str
    path: Path
    #: The node, and that of its file.
    node: str
    file: str
    #: Its content when the next layer was added; None: it is the last one.
    frozen: View | None = None
    #: Its node is removed when nothing uses it any more.
    transient: bool = False
    #: The content that internal snapshots must have, by name.
    snapshots: dict[str, View] = field(default_factory=dict)
    #: It may have leaked clusters, after a crash or after failed requests.
    leaky: bool = False


class Stack:
    """The nodes of one disk, as the program defines them and with all later changes."""

    def __init__(self, daemon: Daemon, directory: Path, options: Options, name: str) -> None:
        self.daemon = daemon
        self.directory = directory
        self.options = options
        self.name = name
        suffix = "qcow2" if options.format == "qcow2" else "raw"
        self.layers = [self._layer(options.format, directory / f"{name}.{suffix}", 0)]
        #: Names of the filter nodes, from the bottom up, and other nodes that each of them needs.
        self.above: list[str] = []
        self.below: list[str] = []
        #: There was a filter below the first image.
        self.filtered = bool(options.below)
        self._helpers: dict[str, list[str]] = {}
        self._number = 0
        #: What `blockdev-reopen` has changed.
        self.members: dict[str, Any] = dict(options.members)

    def _layer(self, kind: str, path: Path, number: int) -> Layer:
        return Layer(kind, path, f"{self.name}-{number}", f"{self.name}-file-{number}")

    @property
    def active(self) -> Layer:
        """The image that the guest writes to."""
        return self.layers[-1]

    @property
    def top(self) -> str:
        """The node that the guest uses."""
        if self.options.top:
            return f"{self.name}-top"
        return self.above[-1] if self.above else self.active.node

    @property
    def offset(self) -> int:
        """Where the first image begins in its file."""
        return OFFSET if "offset" in self.options.below else 0

    def again(self, daemon: Daemon) -> Stack:
        """Return the same images for another daemon, with the filters of the program."""
        stack = Stack(daemon, self.directory, self.options, self.name)
        stack.layers, stack.members = self.layers, self.members
        stack.filtered = self.filtered
        for number, layer in enumerate(stack.layers):
            layer.file = f"{self.name}-file-{number}"
            layer.transient = False
        return stack

    # Commands.

    async def command(self, name: str, arguments: dict[str, Any]) -> str:
        """Run a command; return the error's text, or an empty string."""
        answer = await execute(self.daemon, name, arguments)
        return "" if "return" in answer else str(answer["desc"])

    async def do(self, command: str, /, **arguments: Any) -> None:
        """Run a command that has to succeed; `_` in names stands for `-`."""
        wire = {key.replace("_", "-"): value for key, value in arguments.items()}
        error = await self.command(command, wire)
        if error:
            raise CommandError(f"{command} {wire}: {error}")

    # Definitions.

    def _common(self) -> dict[str, Any]:
        return {"discard": "unmap" if self.options.discard else "ignore"}

    def file_definition(self, path: Path, node: str) -> dict[str, Any]:
        """Return the definition of a file."""
        cache = {"direct": self.options.direct}
        return {
            **self._common(),
            "driver": "file",
            "node-name": node,
            "filename": str(path),
            "cache": cache,
        }

    def format_definition(self, layer: Layer, file: str) -> dict[str, Any]:
        """Return the definition of an image, on a file node or a filter."""
        common = {**self._common(), "detect-zeroes": self._detect_zeroes(), "file": file}
        made = {**common, "driver": layer.format, "node-name": layer.node}
        if layer.format == "qcow2":
            made |= self.members
            if not self.options.named:
                made["backing"] = self._backing(layer)
            if layer is self.layers[0] and self.options.data_file:
                made["data-file"] = self._data_file()
        return made

    def _data_file(self) -> str | dict[str, Any]:
        """Return the data file, a node or a definition.

        The image has a relative name, which is relative to the daemon's directory.
        """
        if not self.options.named:
            return f"{self.name}-data"
        return {"driver": "file", "filename": str(self.directory / images.DATA)}

    def _detect_zeroes(self) -> str:
        chosen = self.options.detect_zeroes
        return "on" if chosen == "unmap" and not self.options.discard else chosen

    def _backing(self, layer: Layer) -> str | None:
        index = self.layers.index(layer)
        if index:
            return self.layers[index - 1].node
        return f"{self.name}-base" if self.options.backing else None

    def top_definition(self, child: str) -> dict[str, Any]:
        """Return the definition of the raw node on top."""
        return {**self._common(), "driver": "raw", "node-name": f"{self.name}-top", "file": child}

    # Building.

    async def build(self) -> None:
        """Add all nodes."""
        options = self.options
        if options.backing and not options.named:
            path = self.directory / images.BASE
            file = {**self.file_definition(path, f"{self.name}-base-file"), "read-only": True}
            await self.do("blockdev-add", **file)
            base = {"driver": options.backing_format, "node-name": f"{self.name}-base"}
            if options.backing_format == "qcow2":
                base["backing"] = None  # type: ignore[assignment]
            await self.do("blockdev-add", **base, file=f"{self.name}-base-file", read_only=True)
        if options.data_file and not options.named:
            path = self.directory / images.DATA
            await self.do("blockdev-add", **self.file_definition(path, f"{self.name}-data"))
        for layer in [self.active] if options.named else self.layers:
            await self._add_layer(layer)
        for kind in options.above:
            await self.insert_above(kind, self.active.node if not self.above else self.above[-1])
        if options.top:
            child = self.above[-1] if self.above else self.active.node
            await self.do("blockdev-add", **self.top_definition(child))

    async def _add_layer(self, layer: Layer) -> None:
        access = {} if layer is self.active else {"read-only": True}
        await self.do("blockdev-add", **self.file_definition(layer.path, layer.file), **access)
        file = layer.file
        if layer is self.layers[0]:
            for kind in self.options.below:
                file = await self.add_filter(kind, file, below=True)
                self.below.append(file)
        await self.do("blockdev-add", **self.format_definition(layer, file), **access)

    async def insert_above(self, kind: str, child: str) -> None:
        """Add a filter on a child."""
        self.above.append(await self.add_filter(kind, child, below=False))

    async def add_filter(self, kind: str, child: str, *, below: bool) -> str:
        """Add a filter node and other nodes that it needs; return its name."""
        self._number += 1
        self.filtered |= below
        name = f"{self.name}-f{self._number}"
        helpers = self._helpers[name] = []
        made = {**self._common(), "driver": kind, "node-name": name, "file": child}
        match kind:
            case "throttle":
                made["throttle-group"] = GROUP
            case "offset":
                made |= {"driver": "raw", "offset": OFFSET}
            case "window":
                size = self.daemon.graph.find(child).size
                made |= {"driver": "raw", "offset": 0, "size": size}
            case "blkdebug":
                del made["file"]
                made |= {"image": child, "align": BLKDEBUG_BLOCK * SECTOR if below else SECTOR}
            case "blklogwrites":
                helpers.append(f"{name}-log")
                log = {"driver": "null-co", "node-name": f"{name}-log", "size": 1 << 40}
                await self.do("blockdev-add", **log)
                made["log"] = f"{name}-log"
            case "quorum":
                del made["file"], made["discard"]
                copy = await self._add_copy(name, below=below)
                made |= {"children": [child, copy], "vote-threshold": 2}
            case "blkverify":
                del made["file"], made["discard"]
                made |= {"test": child, "raw": await self._add_copy(name, below=below)}
            case "copy-before-write":
                made["target"] = await self._add_target(name, child)
            case _:
                pass
        await self.do("blockdev-add", **made)
        return name

    async def _add_copy(self, name: str, *, below: bool) -> str:
        """Add a file that is a copy of the image's file (`below`), or of the disk's content."""
        helper = f"{name}-copy"
        path = self.directory / helper
        if not path.exists():
            if below:
                sparse.copy(self.layers[0].path, path)
            else:
                self._write_content(path)
        self._helpers[name].append(helper)
        await self.do("blockdev-add", **self.file_definition(path, helper))
        return helper

    def _write_content(self, path: Path) -> None:
        options = self.options
        length = min(options.backing, options.size)
        content = encode(images.BASE_TOKEN, 0, length)
        path.write_bytes(content)
        with path.open("r+b") as file:
            file.truncate(options.size * SECTOR)

    async def _add_target(self, name: str, child: str) -> str:
        """Add a file to keep old data in."""
        helper = f"{name}-target"
        path = self.directory / helper
        with path.open("wb") as file:
            file.truncate(self.daemon.graph.find(child).size)
        self._helpers[name].append(helper)
        await self.do("blockdev-add", **self.file_definition(path, helper))
        return helper

    async def remove_filter(self, name: str) -> None:
        """Remove a filter that nothing uses."""
        await self.do("blockdev-del", node_name=name)
        for helper in self._helpers.pop(name):
            await self.do("blockdev-del", node_name=helper)

    async def put_above(self, child: str) -> str:
        """Replace the child of the top node; return the error's text, or an empty string."""
        return await self.command("blockdev-reopen", {"options": [self.top_definition(child)]})

    async def reopen(self, **members: Any) -> str:
        """Reopen the active image with other members, and keep them if that works.

        Return the error's text, or an empty string.
        """
        layer = self.active
        file = self.below[-1] if self.below and layer is self.layers[0] else layer.file
        wire = {key.replace("_", "-"): value for key, value in members.items()}
        definition = {**self.format_definition(layer, file), **wire}
        backing = self.daemon.graph.find(layer.node).children.get("backing")
        if self.options.named and backing is not None:
            definition["backing"] = backing.node.node_name
        return await self.command("blockdev-reopen", {"options": [definition]})

# SPDX-License-Identifier: Apache-2.0
"""The objects in a daemon during a random script, derived from its replies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Drivers whose nodes show the bytes of a file.
PROTOCOLS = ("file", "host_device")
#: Commands after which the nodes are queried again.
CHANGING = frozenset(
    {
        *("blockdev-add", "blockdev-del", "blockdev-reopen", "blockdev-snapshot", "transaction"),
        *("blockdev-snapshot-sync", "blockdev-snapshot-internal-sync", "block_resize"),
        *("blockdev-snapshot-delete-internal-sync", "x-blockdev-change", "blockdev-set-active"),
        *("block-dirty-bitmap-add", "block-dirty-bitmap-remove", "change-backing-file"),
    }
)


@dataclass(slots=True)
class Node:
    """A node with a name."""

    driver: str
    size: int
    read_only: bool
    bitmaps: list[str] = field(default_factory=list)
    snapshots: list[str] = field(default_factory=list)


@dataclass(slots=True)
class World:
    """The objects of one daemon."""

    #: Images in the directory, and their formats.
    files: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    #: The last definitions of nodes.
    definitions: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: vhost-user-blk exports, and their nodes; a socket has the name of its export.
    exports: dict[str, str] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)

    def is_opaque(self, reference: Any, above: tuple[str, ...] = ()) -> bool:
        """Return whether a node shows the bytes of a qcow2 image's file.

        Such bytes are not compared, as each daemon may lay out an image in its own way.
        """
        if isinstance(reference, str):
            found = self.definitions.get(reference)
            above = (*above, reference)
            if found is None or reference in above[:-1]:
                node = self.nodes.get(reference)
                return node is not None and node.driver in PROTOCOLS
            reference = found
        if not isinstance(reference, dict):
            return False
        if reference["driver"] == "qcow2":
            return self.is_opaque(reference.get("backing"), above)
        if "filename" in reference:
            return self.files.get(reference["filename"]) != "raw"
        children = [reference.get(name) for name in ("file", "image")]
        children += reference.get("children", [])
        return any(self.is_opaque(child, above) for child in children)

    def comparable_exports(self) -> list[str]:
        """List exports whose data can be compared."""
        return [name for name, node in self.exports.items() if not self.is_opaque(node)]

    def learn(self, command: str, arguments: dict[str, Any], answer: Any) -> None:
        """Note the result of a command."""
        if not isinstance(answer, dict) or "return" not in answer:
            return
        match command:
            case "query-named-block-nodes":
                self._learn_nodes(answer["return"])
            case "blockdev-add":
                self._define(arguments)
            case "blockdev-reopen":
                for definition in arguments["options"]:
                    self._define(definition)
            case "block-export-add":
                self.exports[arguments["id"]] = arguments["node-name"]
            case "block-export-del":
                self.exports.pop(arguments["id"], None)
            case "object-add" if arguments["qom-type"] == "throttle-group":
                self.groups.append(arguments["id"])
            case "object-del" if arguments["id"] in self.groups:
                self.groups.remove(arguments["id"])
            case "blockdev-snapshot-sync":
                self._learn_file(arguments)
            case "transaction":
                for action in arguments["actions"]:
                    if action["type"] == "blockdev-snapshot-sync":
                        self._learn_file(action["data"])

    def _define(self, definition: dict[str, Any]) -> None:
        for each in _definitions(definition):
            self.definitions[each["node-name"]] = each

    def _learn_file(self, arguments: dict[str, Any]) -> None:
        self.files[arguments["snapshot-file"]] = arguments.get("format", "qcow2")

    def _learn_nodes(self, nodes: list[dict[str, Any]]) -> None:
        self.nodes = {
            node["node-name"]: Node(
                node["drv"],
                node["image"]["virtual-size"],
                node["ro"],
                [bitmap["name"] for bitmap in node.get("dirty-bitmaps", []) if "name" in bitmap],
                [snapshot["name"] for snapshot in node["image"].get("snapshots", [])],
            )
            for node in nodes
            if not node["node-name"].startswith("#")
        }
        self.definitions = {
            name: definition for name, definition in self.definitions.items() if name in self.nodes
        }


def _definitions(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the definitions of nodes with names, also those inside others."""
    if isinstance(value, dict):
        if "node-name" in value and "driver" in value:
            yield value
        for member in value.values():
            yield from _definitions(member)
    elif isinstance(value, list):
        for item in value:
            yield from _definitions(item)

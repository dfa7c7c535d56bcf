# SPDX-License-Identifier: Apache-2.0
"""Generating random scripts, a few lines at a time, depending on the daemon's answers so far."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

from tests.differential.values import Values
from tests.differential.world import CHANGING, PROTOCOLS, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KIB, MIB = 1 << 10, 1 << 20

#: The weights of drivers of random nodes.
DRIVERS = {
    "file": 6,
    "qcow2": 8,
    "raw": 4,
    "null-co": 1,
    "throttle": 1,
    "copy-on-read": 2,
    "copy-before-write": 2,
    "compress": 1,
    "preallocate": 1,
    "snapshot-access": 1,
    "quorum": 1,
    "blkdebug": 1,
    "blklogwrites": 1,
    "host_device": 0.2,
}
#: Members that hold the children of a driver, except "file".
CHILDREN = {
    "qcow2": ("file",),
    "blkdebug": ("image",),
    "blklogwrites": ("file", "log"),
    "copy-before-write": ("file", "target"),
}
#: Drivers without children, or with a list of them.
CHILDLESS = ("file", "host_device", "null-co", "quorum")
#: Members that are essential to a node; `blockdev-reopen` mostly keeps them.
KEPT = ("file", "children", "image", "log", "target", "filename")

IMAGES = (
    ("qcow2", ""),
    ("qcow2", "cluster_size=4k"),
    ("qcow2", "cluster_size=512"),
    ("qcow2", "extended_l2=on,cluster_size=16k"),
    ("qcow2", "compat=0.10"),
    ("qcow2", "lazy_refcounts=on"),
    ("qcow2", "preallocation=metadata"),
    ("qcow2", "cluster_size=4k,refcount_bits=1"),
    ("qcow2", "data_file=DATA"),
    ("qcow2", "data_file=DATA,data_file_raw=on"),
    ("qcow2", "backing"),
    ("qcow2", "backing"),
    ("raw", ""),
    ("raw", ""),
)


def qmp(command: str, arguments: dict[str, Any] | None = None) -> str:
    """Return the script line of a command."""
    return "> " + json.dumps({"execute": command, "arguments": arguments or {}})


class Generator:
    """One random script."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.world = World()
        self.values = Values(self.chance, self.world)
        self._byte = 0
        self._numbers = 0
        self._actions: list[tuple[Callable[[], list[str]], float]] = [
            (self._io, 30),
            (self._add_node, 14),
            (self._add_stack, 4),
            (self._reopen, 10),
            (self._delete_node, 5),
            (self._add_export, 6),
            (self._delete_export, 3),
            (self._resize, 6),
            (self._internal_snapshot, 6),
            (self._external_snapshot, 6),
            (self._bitmap, 10),
            (self._transaction, 5),
            (self._change, 4),
            (self._active, 1),
            (self._group, 2),
            (self._create, 3),
            (self._backing_file, 1),
            (self._query, 4),
            (self._dump, 4),
        ]

    def begin(self) -> Iterator[str]:
        """Yield lines that create images, and a first disk."""
        for number in range(self.values.choose(2, 3, 4)):
            yield from self._image(number)
        yield from self._add_stack()

    def go_on(self) -> list[str]:
        """Return the lines of the next action."""
        actions, weights = zip(*self._actions, strict=True)
        (action,) = self.chance.choices(actions, weights)
        lines: list[str] = action()
        return lines

    def learn(self, line: str, answer: Any) -> list[str]:
        """Note the outcome of a line; return lines that must follow it."""
        if not line.startswith("> "):
            return []
        request = json.loads(line[2:])
        command = request["execute"]
        try:
            self.world.learn(command, request["arguments"], answer)
        except (KeyError, TypeError):  # the arguments were wrong, so nothing has changed
            pass
        succeeded = isinstance(answer, dict) and "return" in answer
        return [qmp("query-named-block-nodes")] if succeeded and command in CHANGING else []

    def end(self) -> Iterator[str]:
        """Yield lines that compare all remaining objects."""
        for name in self.world.comparable_exports():
            yield f"io {name}.sock dump"
            yield f"io {name}.sock close"
        yield qmp("query-block-exports")
        yield qmp("quit")
        yield "exit"
        for name, kind in self.world.files.items():
            if kind == "raw":
                yield f"$ sha256sum {name}; stat -c %s {name}"
                continue
            yield f"$ qemu-img check -f qcow2 {name} > /dev/null 2>&1"
            yield f"$ qemu-img convert -U -f qcow2 -O raw {name} out && sha256sum out"
            yield f"$ qemu-img info -U -f qcow2 {name} | sed '/^Child node/,$d'"

    # Images.

    def _image(self, number: int) -> Iterator[str]:
        kind, options = self.chance.choice(IMAGES)
        name = f"{'abcdef'[number]}.{kind}"
        size = self.values.choose(1 * MIB, 2 * MIB, 2 * MIB + 512, 3 * MIB, 4 * MIB)
        words = ["qemu-img", "create", "-q", "-f", kind]
        others = [other for other, of in self.world.files.items() if of == "qcow2"]
        if options == "backing":
            if others:
                words += ["-b", others[-1], "-F", "qcow2"]
            else:
                yield f"$ qemu-img create -q -f raw base.raw {MIB}"
                words += ["-b", "base.raw", "-F", "raw"]
                self.world.files["base.raw"] = "raw"
        elif options:
            words += ["-o", options.replace("DATA", f"{name}.data")]
        yield f"$ {' '.join(words)} {name} {size}"
        if self.values.likely(0.7):
            writes = []
            for _ in range(self.values.choose(1, 2, 3)):
                place = self.chance.randrange(0, size - 64 * KIB, 4 * KIB)
                writes.append(f"-c 'write -q -P {self._next_byte()} {place} 48k'")
            yield f"$ qemu-io -f {kind} {' '.join(writes)} {name}"
        if kind == "qcow2" and "data_file" not in options and "refcount_bits=1" not in options:
            if self.values.likely(0.2):
                yield f"$ qemu-img snapshot -c old {name}"
            if "compat" not in options and self.values.likely(0.2):
                yield f"$ qemu-img bitmap --add {name} kept"
        self.world.files[name] = kind

    def _next_byte(self) -> int:
        self._byte = self._byte % 255 + 1
        return self._byte

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    # Nodes.

    def _command(self, command: str, arguments: dict[str, Any]) -> list[str]:
        """Return the line of a command, sometimes with a mistake."""
        if self.values.likely(0.03):
            arguments = self.values.spoil(arguments)
        return [qmp(command, arguments)]

    def _add_stack(self) -> list[str]:
        """Add an image with its file, and an export."""
        name = self.chance.choice(list(self.world.files))
        kind = self.world.files[name]
        unmap: dict[str, Any] = {"discard": "unmap"} if self.values.likely(0.7) else {}
        file = self.values.node("file", filename=name, **unmap)
        disk = self.values.node(kind, file=file["node-name"], **unmap)
        lines = [qmp("blockdev-add", file), qmp("blockdev-add", disk)]
        return lines + self._export(disk["node-name"], writable=self.values.likely(0.9))

    def _definition(self, depth: int = 0, *, protocol: bool = False) -> dict[str, Any]:
        """Return the definition of a node of any driver; `depth` > 0: inside another one."""
        drivers = {"file": 1} if protocol or depth > 1 else DRIVERS
        (driver,) = self.chance.choices([*drivers], [*drivers.values()])
        children: dict[str, Any] = {}
        members = CHILDREN.get(driver, () if driver in CHILDLESS else ("file",))
        for member in members:
            children[member] = self._child(depth, protocol=driver in ("qcow2", "raw"))
        if driver == "qcow2" and self.values.likely(0.15):
            children["backing"] = self.values.choose(None, self._child(depth))
        if driver == "quorum":
            count = self.values.choose(1, 2, 2, 3)
            children["children"] = [self._child(depth) for _ in range(count)]
        return self.values.node(driver, inline=depth > 0, **children)

    def _child(self, depth: int, *, protocol: bool = False) -> Any:
        """Return a reference to a node, or a definition."""
        names = [
            name
            for name, node in self.world.nodes.items()
            if not protocol or node.driver in PROTOCOLS
        ]
        if names and self.values.likely(0.7):
            return self.chance.choice(names)
        return self._definition(depth + 1, protocol=protocol)

    def _add_node(self) -> list[str]:
        return self._command("blockdev-add", self._definition())

    def _reopen(self) -> list[str]:
        defined = list(self.world.definitions)
        if not defined:
            return self._add_node()
        options = []
        # `blockdev-reopen` merges the options of a node that is named twice, as in QEMU.
        for name in self.chance.sample(defined, min(self.values.choose(1, 1, 1, 2), len(defined))):
            definition = dict(self.world.definitions[name])
            if self.values.likely(0.85):
                self._alter(definition)
            options.append(definition)
        return self._command("blockdev-reopen", {"options": options})

    def _alter(self, definition: dict[str, Any]) -> None:
        """Change some members of a definition."""
        kept = {name: definition[name] for name in KEPT if name in definition}
        fresh = self.values.node(definition["driver"], inline=True, **kept)
        # If a window below an export is moved or cut, the data of QEMU's export is undefined.
        for name in sorted({*fresh, *definition} - {"driver", "node-name", "size", "offset"}):
            if self.values.likely(0.4):
                if name in fresh:
                    definition[name] = fresh[name]
                else:
                    definition.pop(name, None)
        if self.values.likely(0.25):
            for name in ("file", "backing", "image"):
                if name in definition or (name == "backing" and definition["driver"] == "qcow2"):
                    definition[name] = self.values.choose(self.values.some_node(), None)

    def _delete_node(self) -> list[str]:
        return self._command("blockdev-del", {"node-name": self.values.some_node()})

    def _change(self) -> list[str]:
        return self._command("x-blockdev-change", self.values.arguments("x-blockdev-change"))

    def _resize(self) -> list[str]:
        members = {"node-name": self.values.some_node(), "size": self.values.some_size()}
        return self._command("block_resize", members)

    def _active(self) -> list[str]:
        arguments = self.values.arguments("blockdev-set-active", active=self.values.likely(0.7))
        return self._command("blockdev-set-active", arguments)

    # Exports and requests. (Without write thresholds: the excess of a request depends on merging
    # with other requests.)

    def _add_export(self) -> list[str]:
        return self._export(self.values.some_node(), writable=self.values.likely(0.7))

    def _export(self, node: str, *, writable: bool) -> list[str]:
        name = f"e{self._next_number()}"
        members: dict[str, Any] = {
            "type": "vhost-user-blk",
            "id": name,
            "node-name": node,
            "addr": {"type": "unix", "path": f"{name}.sock"},
            "writable": writable,
        }
        if self.values.likely(0.1):
            members["writethrough"] = True
        # Connect at once: QEMU crashes if an export has a notification and no front-end.
        return [*self._command("block-export-add", members), f"io {name}.sock connect"]

    def _delete_export(self) -> list[str]:
        if not self.world.exports:
            return self._add_export()
        name = self.chance.choice(list(self.world.exports))
        # Without "hard" the outcome depends on whether the daemon has noticed the disconnect.
        members = {"id": name, "mode": "hard"}
        deleted = self._command("block-export-del", members)
        return [f"io {name}.sock close", *deleted, f'wait BLOCK_EXPORT_DELETED {{"id": "{name}"}}']

    def _io(self) -> list[str]:
        if not (exports := self.world.comparable_exports()):
            return self._add_stack()
        name = self.chance.choice(exports)
        node = self.world.nodes.get(self.world.exports[name])
        size = max(node.size if node else MIB, 64 * KIB) & ~511
        if self.values.likely(0.05):
            return [f"io {name}.sock cache {self.values.choose('on', 'off')}"]
        # Only requests that don't overlap are made concurrently.
        unit = self.values.choose(512, 4 * KIB, 64 * KIB)
        count = self.values.choose(1, 1, 1, 2, 4, 8, 16)
        places = list(range(0, size, max(unit, size // 32 & ~511)))
        chosen = sorted(self.chance.sample(places, min(count, len(places))))
        requests = []
        for place in chosen:
            after = [other for other in chosen if other > place]
            room = (after[0] if after else size) - place
            length = min(room, unit * self.values.choose(1, 1, 1, 2, 3, 16))
            requests.append(self._request(place, length))
        if count == 1 and self.values.likely(0.02):
            requests = [self._request(size, 512)]
        return [f"io {name}.sock {'; '.join(requests)}"]

    def _request(self, place: int, length: int) -> str:
        kinds = {"write": 10, "read": 4, "zero": 3, "discard": 3, "flush": 2}
        (kind,) = self.chance.choices([*kinds], [*kinds.values()])
        match kind:
            case "write":
                return f"write {place} {length} {self._next_byte()}"
            case "zero":
                return f"zero {place} {length}{self.values.choose('', ' unmap')}"
            case "flush":
                return "flush"
        return f"{kind} {place} {length}"

    def _dump(self) -> list[str]:
        if not (exports := self.world.comparable_exports()):
            return self._query()
        return [f"io {self.chance.choice(exports)}.sock dump"]

    # Snapshots and bitmaps.

    def _internal_snapshot(self) -> list[str]:
        command, arguments = self._internal_snapshot_of(self.values.some_node())
        return self._command(command, arguments)

    def _internal_snapshot_of(self, node: str) -> tuple[str, dict[str, Any]]:
        there = self.world.nodes[node].snapshots if node in self.world.nodes else []
        if there and self.values.likely(0.5):
            members = {"device": node, "name": self.chance.choice(there)}
            return "blockdev-snapshot-delete-internal-sync", members
        name = (
            f"s{self._next_number()}" if self.values.likely(0.9) else self.values.choose("", "old")
        )
        return "blockdev-snapshot-internal-sync", {"device": node, "name": name}

    def _external_snapshot(self) -> list[str]:
        if self.values.likely(0.3):
            members = {"node": self.values.some_node(), "overlay": self.values.some_node()}
            return self._command("blockdev-snapshot", members)
        return self._command("blockdev-snapshot-sync", self._external_snapshot_of())

    def _external_snapshot_of(self) -> dict[str, Any]:
        file = (
            f"o{self._next_number()}.qcow2" if self.values.likely(0.9) else self.values.some_file()
        )
        node = self.values.some_node()
        if self.world.is_opaque(node):
            node = "nobody"
        return {
            "node-name": node,
            "snapshot-file": file,
            "snapshot-node-name": self.values.new_node(),
            **self.values.choose({}, {}, {}, {"format": "qcow2"}, {"mode": "existing"}),
        }

    def _bitmap(self) -> list[str]:
        command, arguments = self._bitmap_command()
        return self._command(command, arguments)

    def _bitmap_command(self) -> tuple[str, dict[str, Any]]:
        kind = self.values.choose(
            "add", "add", "clear", "disable", "enable", "merge", "remove", "hash"
        )
        if kind == "add":
            members = {
                "node": self.values.some_node(),
                "name": self.values.choose("b0", "b1", "b2"),
            }
            return "block-dirty-bitmap-add", self.values.arguments(
                "block-dirty-bitmap-add",
                **members,
                persistent=self.values.likely(0.4),
                granularity=self.values.choose(512, 4096, 65536, 1 << 20),
            )
        bitmap = self.values.some_bitmap()
        if kind == "merge":
            sources = [self.values.some_bitmap() for _ in range(self.values.choose(1, 1, 2))]
            members = {"node": bitmap["node"], "target": bitmap["name"], "bitmaps": sources}
            return "block-dirty-bitmap-merge", members
        if not kind:
            return "x-debug-block-dirty-bitmap-sha256", bitmap
        return f"block-dirty-bitmap-{kind}", bitmap

    def _transaction(self) -> list[str]:
        actions = []
        for _ in range(self.values.choose(1, 2, 2, 3)):
            match self.values.choose(
                "bitmap", "bitmap", "internal", "external", "snapshot", "abort"
            ):
                case "bitmap":
                    command, members = self._bitmap_command()
                    if command.startswith("x-"):
                        continue
                case "internal":
                    command, members = self._internal_snapshot_of(self.values.some_node())
                    if "delete" in command:
                        continue
                case "external":
                    command, members = "blockdev-snapshot-sync", self._external_snapshot_of()
                case "snapshot":
                    names = {"node": self.values.some_node(), "overlay": self.values.some_node()}
                    command, members = "blockdev-snapshot", names
                case _:
                    command, members = "abort", {}
                    if self.values.likely(0.5):
                        continue
            actions.append({"type": command, "data": members})
        return self._command("transaction", {"actions": actions})

    def _backing_file(self) -> list[str]:
        arguments = {
            "device": self.values.some_node(),
            "image-node-name": self.values.some_node(),
            "backing-file": self.values.choose(self.values.some_file(), "", "gone"),
        }
        return self._command("change-backing-file", arguments)

    # The rest.

    def _group(self) -> list[str]:
        if self.world.groups and self.values.likely(0.3):
            return self._command("object-del", {"id": self.values.some_group()})
        name = f"g{self.values.choose(0, 1)}"
        members = {"qom-type": "throttle-group", "id": name, "limits": {"iops-total": 1 << 30}}
        return self._command("object-add", members)

    def _create(self) -> list[str]:
        """Create an image in a new file."""
        file, node = f"c{self._next_number()}.qcow2", self.values.new_node()
        size = self.values.choose(0, 0, 65536)
        options = self.values.create_options(driver="qcow2", file=node)
        self.world.files[file] = "qcow2"
        return [
            *self._job({"driver": "file", "filename": file, "size": size}),
            *self._command("blockdev-add", {"driver": "file", "node-name": node, "filename": file}),
            *self._job(options),
        ]

    def _job(self, options: dict[str, Any]) -> list[str]:
        name = f"j{self._next_number()}"
        return [
            *self._command("blockdev-create", {"job-id": name, "options": options}),
            f'wait JOB_STATUS_CHANGE {{"id": "{name}", "status": "concluded"}}',
            qmp("query-jobs"),
            qmp("job-dismiss", {"id": name}),
        ]

    def _query(self) -> list[str]:
        return [
            qmp(
                self.values.choose(
                    "query-block-exports", "query-block", "x-debug-query-block-graph", "query-jobs"
                )
            )
        ]

# SPDX-License-Identifier: Apache-2.0
"""Programs: a disk and all actions on it, as plain data that can be drawn, shrunk and stored."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Sectors of a mebibyte.
MIB = 2048
#: Sectors that a `blkdebug` node below an image has in a block.
BLKDEBUG_BLOCK = 8


@dataclass(frozen=True)
class Options:
    """The options of the disk, and the nodes above and below it. Sizes are in sectors."""

    #: `qcow2` or `raw`.
    format: str = "qcow2"
    size: int = 8 * MIB
    cluster_bits: int = 16
    version: int = 3
    extended: bool = False
    refcount_bits: int = 16
    lazy: bool = False
    #: An external data file: "", "plain" or "raw".
    data_file: str = ""
    zstd: bool = False
    preallocation: str = "off"
    #: Length of the backing file; 0: there is none.
    backing: int = 0
    backing_format: str = "raw"

    #: The driver under the image: `store` or `file`.
    storage: str = "store"
    #: The durations of the store's requests (`store.PACES`), and the seed for these times.
    pace: str = "none"
    seed: int = 0
    #: The file is opened with cache.direct.
    direct: bool = False
    #: All writes are recorded, and crashes are tried afterwards.
    cuts: bool = False

    #: The entry point: `backend`, or an export in the lane `python` or `express`.
    lane: str = "backend"
    queues: int = 1
    #: Each queue has an iothread of its own.
    iothreads: bool = False
    packed: bool = False
    #: The logical block size, in sectors.
    block: int = 1
    write_cache: bool = True

    #: Options of the nodes.
    discard: bool = True
    detect_zeroes: str = "off"
    #: Backing and data files are opened by the names in the image.
    named: bool = False
    #: More members of the qcow2 node's options.
    members: Mapping[str, Any] = field(default_factory=dict)
    #: A raw node on top, so that filters can be put below it.
    top: bool = True
    #: Filters above the format node, from it up, and below it, from it down.
    above: tuple[str, ...] = ()
    below: tuple[str, ...] = ()
    #: There is a second disk of the same kind.
    second: bool = False
    #: QEMU checks and compares the images at the end.
    qemu: bool = True


class Op(NamedTuple):
    """A request of the guest for `length` sectors, or `times` of them, each `step` sectors later.

    `write`, `fua` (a write that is written through), `packed` (a compressed write), `blank` (a
    write of zeroes), `zero`, `unmap` (zeroes that may be a hole), `discard`, `read`, `flush`.
    """

    kind: str
    first: int = 0
    length: int = 1
    times: int = 1
    step: int = 0

    def each(self) -> Iterator[Op]:
        """Yield the requests one by one."""
        for number in range(self.times):
            yield Op(self.kind, self.first + number * self.step, self.length)


@dataclass(frozen=True)
class Act:
    """An action of the administrator, or an event: a method of `changes.Changes`."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Burst:
    """Requests, `depth` of them in flight at a time; repeated requests are interleaved.

    `acts` are performed meanwhile.
    """

    ops: tuple[Op, ...]
    depth: int = 32
    #: The index of the disk.
    disk: int = 0
    acts: tuple[Act, ...] = ()

    def requests(self) -> Iterator[Op]:
        """Yield the requests in the order in which they are made."""
        streams = [op.each() for op in self.ops]
        while streams:
            for stream in list(streams):
                op = next(stream, None)
                if op is None:
                    streams.remove(stream)
                else:
                    yield op


Step = Burst | Act


@dataclass(frozen=True)
class Program:
    """A disk and all actions on it."""

    options: Options
    steps: tuple[Step, ...]

    def to_json(self) -> str:
        """Return it as one line of JSON, without members that have their default."""
        default = Options()
        options = {
            each.name: getattr(self.options, each.name)
            for each in fields(Options)
            if getattr(self.options, each.name) != getattr(default, each.name)
        }
        steps = [_encode(step) for step in self.steps]
        return json.dumps({"options": options, "steps": steps}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Program:
        """Undo `to_json`."""
        tree = json.loads(text)
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in tree["options"].items()
        }
        return cls(Options(**options), tuple(_decode(step) for step in tree["steps"]))

    def __repr__(self) -> str:
        return f"Program.from_json({self.to_json()!r})"


def _encode(step: Step) -> dict[str, Any]:
    if isinstance(step, Act):
        return {"act": step.name, **step.arguments}
    tree: dict[str, Any] = {"ops": [_trim(op) for op in step.ops]}
    if step.depth != 32:
        tree["depth"] = step.depth
    if step.disk:
        tree["disk"] = step.disk
    if step.acts:
        tree["acts"] = [_encode(act) for act in step.acts]
    return tree


def _trim(op: Op) -> list[Any]:
    values = list(op)
    while values[1:] and values[-1] == Op._field_defaults[Op._fields[len(values) - 1]]:
        values.pop()
    return values


def _decode(tree: dict[str, Any]) -> Step:
    if "act" in tree:
        return Act(tree["act"], {name: value for name, value in tree.items() if name != "act"})
    acts = [_decode(act) for act in tree.get("acts", ())]
    return Burst(
        tuple(Op(*op) for op in tree["ops"]),
        tree.get("depth", 32),
        tree.get("disk", 0),
        tuple(act for act in acts if isinstance(act, Act)),
    )

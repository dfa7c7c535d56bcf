# SPDX-License-Identifier: Apache-2.0
"""A daemon that never sits still: random graph and export operations under verified I/O.

Two disks are in use all the time by front-ends that check every block they read; meanwhile nodes,
exports, objects and properties come, change and go over QMP, and some have clients of their own.
Each operation must end as the model says it does. What must not grow: memory, descriptors, threads,
locks; afterwards the daemon has what it had at the start.

`pytest integration/test_soak.py --soak=10000` is the long form.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.loadgen.build import BuildError, load
from benchmarks.loadgen.client import FrontEnd, Geometry
from benchmarks.loadgen.run import Ledger, Workload, run
from tests.cli.process import wait_until
from tests.qmp_exports.daemons import VHOSTBLK, Session, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

MIB = 1 << 20
#: What the front-ends use of their disks, whatever size these have now.
SPAN = 2 * MIB
SIZES = (4 * MIB, 5 * MIB, 6 * MIB)
#: Requests a second of each disk in use. Two processors have to do for all.
RATE = 400.0
#: At most so many nodes, exports and objects besides those of the disks.
CROWD = 6
#: Growth of resident memory between the middle and the end that is no leak, in bytes.
TOLERATED_GROWTH = 4 * MIB


class Load:
    """One front-end at work on one disk, in a thread."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path = path
        self._seed = seed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"load on {path.name}")
        self.requests = 0
        self.error: Exception | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the load; raises what went wrong with it."""
        self._stop.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        workload = Workload(
            seconds=0.3,
            write_share=0.5,
            zeroes_share=0.05,
            flush_share=0.02,
            span=SPAN,
            rate=RATE,
            seed=self._seed,
            wait_for_calls=True,
            stall_seconds=20.0,
        )
        ledger = Ledger(SPAN // 4096, self._seed)
        try:
            with FrontEnd(self._path, Geometry(queues=2, depth=8)) as front_end:
                while not self._stop.is_set():
                    self.requests += run(front_end, workload, ledger).requests
        except Exception as error:
            self.error = error


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds."""

    descriptors: int
    threads: int
    locks: int
    resident: int

    @staticmethod
    def of(pid: int) -> Usage:
        """Look at a process."""
        process = Path(f"/proc/{pid}")
        status = (process / "status").read_text()
        resident = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
        infos = [path.read_text() for path in _readable(process / "fdinfo")]
        return Usage(
            descriptors=len(infos),
            threads=sum("iou-" not in name for name in _thread_names(process)),
            locks=sum(info.count("lock:") for info in infos),
            resident=int(resident.split()[1]) * 1024,
        )


def _thread_names(process: Path) -> list[str]:
    """List a process's threads; those of io_uring (iou-…) come and go as the kernel likes."""
    return [(task / "comm").read_text().strip() for task in _readable(process / "task")]


def _readable(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.exists()]


@dataclass
class Model:
    """What should be there now, besides the disks."""

    nodes: dict[str, str] = field(default_factory=dict)  # name: driver
    exports: dict[str, str] = field(default_factory=dict)  # id: node
    objects: set[str] = field(default_factory=set)
    iothread_of: dict[str, str] = field(default_factory=dict)  # export: object
    number: int = 0

    def fresh(self, prefix: str) -> str:
        """Make a name up."""
        self.number += 1
        return f"{prefix}{self.number}"

    def children(self) -> set[str]:
        """Name the nodes that raw nodes lie on: each its file of the same number."""
        return {f"file-{name}" for name, driver in self.nodes.items() if driver == "raw"}


class Operations:
    """The random operations."""

    def __init__(self, session: Session, directory: Path, seed: int) -> None:
        self._session = session
        self._directory = directory
        self._random = random.Random(seed)
        self.model = Model()
        self.counts: dict[str, int] = {}
        self._table: list[tuple[int, Callable[[], Coroutine[Any, Any, None]]]] = [
            (6, self.add_node),
            (6, self.remove_node),
            (6, self.add_export),
            (6, self.remove_export),
            (3, self.visit_export),
            (3, self.add_object),
            (3, self.remove_object),
            (2, self.set_property),
            (4, self.resize_disk),
            (4, self.reopen_disk),
            (2, self.set_threshold),
            (4, self.query),
            (3, self.do_wrong),
        ]

    async def one(self) -> None:
        """Do one operation, whichever."""
        weights = [weight for weight, _ in self._table]
        ((_, operation),) = self._random.choices(self._table, weights)
        await operation()
        name = operation.__name__
        self.counts[name] = self.counts.get(name, 0) + 1

    async def each(self) -> None:
        """Do every operation a few times."""
        # While there are no objects an export runs on the default thread, which then stays.
        await self.add_node()
        await self.add_export()
        await self.visit_export()
        for _ in range(3):
            for _, operation in self._table:
                await operation()

    async def clear(self) -> None:
        """Take away all that was added."""
        for export in list(self.model.exports):
            await self._delete_export(export)
        while self.model.nodes:
            await self.remove_node()
        for name in list(self.model.objects):
            await self._do("object-del", id=name)
            self.model.objects.discard(name)

    async def _do(self, command: str, **arguments: Any) -> Any:
        answer = await self._session.run(command, _wire(arguments))
        assert "return" in answer, (command, arguments, answer)
        return answer["return"]

    async def _refused(self, command: str, text: str, **arguments: Any) -> None:
        answer = await self._session.run(command, _wire(arguments))
        assert text in answer.get("desc", ""), (command, arguments, answer)

    def _pick(self, names: Any) -> Any:
        return self._random.choice(sorted(names)) if names else None

    async def add_node(self) -> None:
        """Add a node: no storage, a file, or a raw node on one that is defined inline."""
        if len(self.model.nodes) >= CROWD:
            await self.remove_node()
            return
        name = self.model.fresh("node")
        image = self._directory / f"{name}.img"
        driver = self._random.choice(["null-co", "file", "raw"])
        match driver:
            case "null-co":
                options: dict[str, Any] = {"size": MIB}
            case "file":
                image.write_bytes(bytes(MIB))
                options = {"filename": str(image)}
            case _:
                image.write_bytes(bytes(MIB))
                options = {"file": {"driver": "file", "filename": str(image)}}
        await self._do("blockdev-add", driver=driver, node_name=name, **options)
        self.model.nodes[name] = driver

    async def remove_node(self) -> None:
        """Remove a node, or fail to because an export uses it."""
        name = self._pick(self.model.nodes)
        if name is None:
            return
        if name in self.model.exports.values():
            await self._refused("blockdev-del", "in use", node_name=name)
            return
        await self._do("blockdev-del", node_name=name)
        del self.model.nodes[name]
        (self._directory / f"{name}.img").unlink(missing_ok=True)

    async def add_export(self) -> None:
        """Export a node, on an iothread perhaps."""
        node = self._pick(self.model.nodes)
        if node is None or len(self.model.exports) >= CROWD:
            return
        name = self.model.fresh("export")
        path = self._directory / name
        options: dict[str, Any] = {"addr": {"type": "unix", "path": str(path)}}
        iothread = self._pick(self.model.objects) if self._random.random() < 0.5 else None
        if iothread is not None:
            options["iothread"] = iothread
            self.model.iothread_of[name] = iothread
        # Null nodes have no lock; of the others one process writes at a time, and that is us.
        options["writable"] = self._random.random() < 0.5
        await self._do(
            "block-export-add", type="vhost-user-blk", id=name, node_name=node, **options
        )
        self.model.exports[name] = node

    async def remove_export(self) -> None:
        """Remove an export that nobody uses."""
        name = self._pick(self.model.exports)
        if name is not None:
            await self._delete_export(name)

    async def _delete_export(self, name: str, mode: str = "safe") -> None:
        await self._do("block-export-del", id=name, mode=mode)
        async with asyncio.timeout(20):
            while await self._session.wait_event("BLOCK_EXPORT_DELETED") != {"id": name}:
                pass
        del self.model.exports[name]
        self.model.iothread_of.pop(name, None)

    async def visit_export(self) -> None:
        """Have a client use an export; remove the export under it, perhaps."""
        name = self._pick(self.model.exports)
        if name is None:
            return
        front_end = await asyncio.to_thread(self._visit, self._directory / name)
        try:
            if self._random.random() < 0.5:
                await self._refused("block-export-del", f"export '{name}' still in use", id=name)
                await self._delete_export(name, "hard")
        finally:
            front_end.close()
        while name in self.model.exports:  # the daemon has to notice that the client is gone
            (stats,) = await self._do("x-vhostblk-query-export-stats", id=name)
            if not stats["clients"]:
                break

    def _visit(self, path: Path) -> FrontEnd:
        front_end = FrontEnd(path, Geometry(depth=4))
        run(front_end, Workload(limit=50, seconds=20.0, span=MIB, wait_for_calls=True))
        return front_end

    async def add_object(self) -> None:
        """Add an iothread."""
        if len(self.model.objects) < CROWD:
            name = self.model.fresh("iothread")
            await self._do("object-add", qom_type="iothread", id=name, poll_max_ns=0)
            self.model.objects.add(name)

    async def remove_object(self) -> None:
        """Remove an iothread, or fail to because an export uses it."""
        name = self._pick(self.model.objects)
        if name is None:
            return
        if name in self.model.iothread_of.values():
            await self._refused("object-del", "in use", id=name)
            return
        await self._do("object-del", id=name)
        self.model.objects.discard(name)

    async def set_property(self) -> None:
        """Change how the iothread of the disks polls."""
        value = self._random.choice([0, 1000, 20000])
        await self._do("qom-set", path="/objects/disks", property="poll-max-ns", value=value)
        path = "/objects/disks"
        assert await self._do("qom-get", path=path, property="poll-max-ns") == value

    async def resize_disk(self) -> None:
        """Give a disk that is in use another size; nothing is lost of what is in use of it."""
        disk = self._random.choice(DISKS)
        await self._do("block_resize", node_name=f"{disk}-raw", size=self._random.choice(SIZES))

    async def reopen_disk(self) -> None:
        """Change options of a node that is in use."""
        disk = self._random.choice(DISKS)
        options = {
            "driver": "raw",
            "node-name": f"{disk}-raw",
            "file": f"{disk}-file",
            "discard": self._random.choice(["ignore", "unmap"]),
            "detect-zeroes": self._random.choice(["off", "on"]),
        }
        await self._do("blockdev-reopen", options=[options])

    async def set_threshold(self) -> None:
        """Set a write threshold on a disk in use, or take it away."""
        disk = self._random.choice(DISKS)
        threshold = self._random.choice([0, MIB])
        node = f"{disk}-raw"
        await self._do("block-set-write-threshold", node_name=node, write_threshold=threshold)

    async def query(self) -> None:
        """Ask, and hold the answers against the model."""
        exports = await self._do("query-block-exports")
        assert {info["id"] for info in exports} == {*self.model.exports, *DISKS}
        nodes = await self._do("query-named-block-nodes", flat=True)
        names = {info["node-name"] for info in nodes}
        assert names >= {*self.model.nodes}
        await self._do("x-debug-query-block-graph")
        await self._do("query-blockstats", query_nodes=True)
        listed = await self._do("qom-list", path="/objects")
        assert {info["name"] for info in listed} == {"type", "disks", *self.model.objects}

    async def do_wrong(self) -> None:
        """Ask for what can't be."""
        await self._refused("blockdev-del", "in use", node_name="one-raw")
        await self._refused("blockdev-del", "nothing", node_name="nothing")
        await self._refused("block-export-del", "still in use", id="one")
        await self._refused("block-export-del", "not found", id="nothing")
        await self._refused("object-del", "in use", id="disks")
        await self._refused(
            "blockdev-add", "o such file", driver="file", node_name="x", filename="/x"
        )


#: The disks that are in use all the time; each is an export, and two nodes.
DISKS = ("one", "two")


def _wire(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in arguments.items()}


def _disk_arguments(directory: Path) -> list[str]:
    arguments = ["--object", "iothread,id=disks,poll-max-ns=0"]
    for disk in DISKS:
        image = directory / f"{disk}.img"
        image.write_bytes(bytes(SIZES[0]))
        export = f"vhost-user-blk,id={disk},node-name={disk}-raw,writable=on,num-queues=2"
        export += f",addr.type=unix,addr.path={directory / disk},iothread=disks"
        arguments += ["--blockdev", f"file,node-name={disk}-file,filename={image},discard=unmap"]
        arguments += ["--blockdev", f"raw,node-name={disk}-raw,file={disk}-file"]
        arguments += ["--export", export]
    return arguments


@asynccontextmanager
async def loaded_daemon(directory: Path) -> AsyncIterator[tuple[Session, list[Load]]]:
    """Run a daemon whose disks are in use; the loads have been stopped well afterwards."""
    trace = directory / "trace.log"
    arguments = [*_disk_arguments(directory), "--trace", f"modules_loaded,file={trace}"]
    async with running(VHOSTBLK, directory / "log", arguments) as session:
        # Modules that are loaded in the background take memory and descriptors, too.
        await asyncio.to_thread(wait_until, lambda: "modules_loaded" in trace.read_text())
        loads = [Load(directory / disk, seed) for seed, disk in enumerate(DISKS)]
        for load_on in loads:
            load_on.start()
        try:
            yield session, loads
        finally:
            for load_on in loads:
                await asyncio.to_thread(load_on.stop)


def test_soak(soak: int, directory: Path) -> None:
    try:
        load()
    except BuildError as error:
        pytest.skip(str(error))
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")

    async def main() -> None:
        async with loaded_daemon(directory) as (session, loads):
            operations = Operations(session, directory, seed)
            pid = session.process.pid
            # First everything once around: threads, buffers and modules come with first use.
            await operations.each()
            await _repeat(operations, loads, soak // 10)
            await operations.clear()
            before = await _settled(pid)
            await _repeat(operations, loads, soak // 2)
            await operations.clear()
            middle = await _settled(pid, before)
            await _repeat(operations, loads, soak - soak // 10 - soak // 2)
            await operations.clear()
            after = await _settled(pid, before)
            print(f"before {before}\nmiddle {middle}\nafter  {after}\n{operations.counts}")
            print(sorted(_thread_names(Path(f"/proc/{pid}"))))
            assert all(load_on.requests for load_on in loads)
        for usage in (middle, after):
            assert usage.descriptors == before.descriptors
            assert usage.threads == before.threads
            assert usage.locks == before.locks
        assert after.resident - middle.resident < TOLERATED_GROWTH

    asyncio.run(main())
    assert not (directory / "log").read_text()


async def _repeat(operations: Operations, loads: list[Load], count: int) -> None:
    for _ in range(count):
        await operations.one()
        for load_on in loads:
            if load_on.error is not None:
                raise load_on.error


async def _settled(pid: int, expected: Usage | None = None) -> Usage:
    """Look at a process once it is as `expected`, or no longer changes; threads end a bit later."""
    deadline = time.monotonic() + 30.0
    usage = Usage.of(pid)
    while time.monotonic() < deadline:
        await asyncio.sleep(0.1)
        former, usage = expected or usage, Usage.of(pid)
        if (former.descriptors, former.threads) == (usage.descriptors, usage.threads):
            break
    return usage

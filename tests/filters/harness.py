# SPDX-License-Identifier: Apache-2.0
"""One script of QMP commands and I/O, on vhostblk and on QEMU's storage daemon.

A `Case` names files and steps. Each daemon has a directory of its own, in which the files are made;
`{dir}` in arguments stands for it. `export` shows a node to the script under a name, and the I/O
steps go there: over NBD with QEMU, through the export's block backend with vhostblk, as requests
enter it from any kind of client. `outcome` of a step is data, a list, the answer to a command, or
the errno as NBD can carry it. (QEMU's NBD server itself refuses what lies past the end, and writes
to read-only exports.) Then come the events, and the files' contents once all is closed. Of events
whose rate monitors limit, the first and the last of each kind are compared: these QEMU's monitor
passes on however fast the script is, the last one within a second. Of images called `*.qcow2`
qemu-img says what is in them, which clusters are allocated, and whether all is well.

A step that may differ says why (`but`); it has to, then, so that the list stays true.
"""

from __future__ import annotations

import asyncio
import errno
import json
import re
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from tests.differential.differences import Difference, problem
from tests.differential.normal import runs_of
from tests.filters.nbd import Flag, NbdClient, as_sent
from tests.qmp_block.support import execute
from tests.qmp_exports.daemons import QEMU_10, Program, running
from vhostblk.block.graph import allocation
from vhostblk.block.graph.node import BlockStatus, Extent
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.iovec import IoVec
from vhostblk.daemon import Daemon
from vhostblk.qmp.throttle import INTERVAL, KEYS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.events import Event


@dataclass(frozen=True, slots=True)
class Step:
    """A QMP command, or I/O on an export: `what` is a method of `_Io`."""

    what: str
    arguments: Any
    #: The export, of I/O.
    where: str = ""
    #: Why the outcomes differ.
    but: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """What both daemons go through."""

    name: str
    #: Contents of files, or their size; all there when the daemon starts.
    files: Mapping[str, bytes | int]
    steps: Sequence[Step]
    #: Events that may differ, and why.
    events_but: str = ""
    #: Files whose contents differ in the end, and why.
    files_but: Mapping[str, str] = field(default_factory=dict)


# Making steps.


def qmp(command: str, arguments: dict[str, Any] | None = None, *, but: str = "") -> Step:
    """Run a command."""
    return Step(command, arguments or {}, but=but)


def add(but: str = "", **members: Any) -> Step:
    """Run `blockdev-add`; `_` in names stands for `-`."""
    return qmp("blockdev-add", wire(members), but=but)


def reopen(*nodes: dict[str, Any], but: str = "") -> Step:
    """Run `blockdev-reopen`."""
    return qmp("blockdev-reopen", {"options": [wire(node) for node in nodes]}, but=but)


def delete(name: str, but: str = "") -> Step:
    """Run `blockdev-del`."""
    return qmp("blockdev-del", {"node-name": name}, but=but)


def wire(members: dict[str, Any]) -> dict[str, Any]:
    """Spell members as on the wire."""
    return {
        name.replace("_", "-"): wire(value) if isinstance(value, dict) else value
        for name, value in members.items()
    }


def file(name: str, image: str, **members: Any) -> dict[str, Any]:
    """Return the definition of a file in the daemon's directory."""
    return {"driver": "file", "node-name": name, "filename": f"{{dir}}/{image}", **members}


def export(name: str, node: str, *, writable: bool = True, but: str = "") -> Step:
    """Show a node to the script."""
    return Step("export", (node, writable), name, but)


def vhost_user(name: str, node: str, *, writable: bool = True, but: str = "") -> Step:
    """Make an export of the same type in both daemons, which nobody uses, for its permissions."""
    addr = {"type": "unix", "path": f"{{dir}}/{name}.vhost"}
    members = {"type": "vhost-user-blk", "id": name, "node-name": node, "addr": addr}
    return qmp("block-export-add", {**members, "writable": writable}, but=but)


def unexport(name: str) -> Step:
    """Undo `export`."""
    return Step("unexport", (), name)


def read(where: str, offset: int, length: int, *, but: str = "") -> Step:
    """Read; the outcome is runs of equal bytes."""
    return Step("read", (offset, length), where, but)


def write(
    where: str, offset: int, length: int, byte: int, *, fua: bool = False, but: str = ""
) -> Step:
    """Write a range full of one byte."""
    return Step("write", (offset, length, byte, fua), where, but)


def zero(where: str, offset: int, length: int, *, unmap: bool = False, but: str = "") -> Step:
    """Write zeroes."""
    return Step("zero", (offset, length, unmap), where, but)


def discard(where: str, offset: int, length: int, *, but: str = "") -> Step:
    """Discard."""
    return Step("discard", (offset, length), where, but)


def flush(where: str, *, but: str = "") -> Step:
    """Flush."""
    return Step("flush", (), where, but)


def status(where: str, offset: int, length: int, *, but: str = "") -> Step:
    """Ask for the block status; runs of (length, 1: no data + 2: zeroes)."""
    return Step("status", (offset, length), where, but)


_IO = ("export", "unexport", "read", "write", "zero", "discard", "flush", "status")


@dataclass(slots=True)
class Outcomes:
    """What came of a case on one daemon."""

    steps: list[Any]
    events: list[Any]


# Comparing.


def check(case: Case, directory: Path, program: Program = QEMU_10) -> None:
    """Run a case on both; raises AssertionError with all differences."""
    ours = asyncio.run(run_ours(case, _prepare(case, directory / "ours")))
    theirs = asyncio.run(run_theirs(program, case, _prepare(case, directory / "theirs")))
    problems: list[str] = []

    def compare(told: str, our: Any, their: Any, but: str) -> None:
        if found := problem(Difference(but) if but else None, program.version, our, their):
            problems.append(f"{found}: {told}\n  ours:   {our}\n  theirs: {their}")

    for step, our, their in zip(case.steps, ours.steps, theirs.steps, strict=True):
        compare(f"{step.what} {step.where} {step.arguments}", our, their, step.but)
    compare("events", ours.events, theirs.events, case.events_but)
    for name in case.files:
        our, their = (_shown(directory / who, name) for who in ("ours", "theirs"))
        compare(f"file {name}", our, their, case.files_but.get(name, ""))
    assert not problems, "\n".join(problems)


def _prepare(case: Case, directory: Path) -> Path:
    directory.mkdir()
    for name, content in case.files.items():
        with (directory / name).open("wb") as made:
            if isinstance(content, int):
                made.truncate(content)
            else:
                made.write(content)
    return directory


def _shown(directory: Path, name: str) -> Any:
    """Describe a file as it is in the end."""
    path = directory / name
    if path.suffix != ".qcow2":
        return runs_of(path.read_bytes())

    def image(command: str, *arguments: str) -> Any:
        done = subprocess.run(
            ["qemu-img", command, "-f", "qcow2", "--output=json", *arguments, str(path)],
            capture_output=True,
            check=True,
        )
        return json.loads(done.stdout)

    members = ("start", "length", "depth", "zero", "data", "compressed")
    extents = [{key: extent.get(key) for key in members} for extent in image("map")]
    report = image("check")
    counted = ("check-errors", "corruptions", "leaks", "compressed-clusters")
    raw = path.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(path), str(raw)], check=True)
    return {
        "contents": runs_of(raw.read_bytes()),
        "map": extents,
        "check": {key: report.get(key, 0) for key in counted},
        "behind the image": max(0, path.stat().st_size - report["image-end-offset"]),
    }


def _failed(code: int) -> str:
    return errno.errorcode.get(code, str(code))


def _placed(value: Any, directory: Path) -> Any:
    return json.loads(json.dumps(value).replace("{dir}", str(directory)))


def _unplaced(value: Any, directory: Path) -> Any:
    text = json.dumps(value).replace(str(directory), "{dir}")
    return json.loads(re.sub(r"#block\d+", "#block", text))


def _comparable(value: Any) -> Any:
    """Take out names of exports' block backends, which are QEMU's without, and bitmaps.

    The sets of clusters that filters keep show as dirty bitmaps in QEMU.
    """
    if isinstance(value, str):
        return re.sub(
            r"required by block device '\w*'", "required by an unnamed block device", value
        )
    if isinstance(value, dict):
        if value.get("type") == "block-backend":
            value = {**value, "name": ""}
        return {
            name: _comparable(member) for name, member in value.items() if name != "dirty-bitmaps"
        }
    return [_comparable(member) for member in value] if isinstance(value, list) else value


def _kind(name: str, data: Any) -> tuple[str, ...] | None:
    """Return what monitors tell events by whose rate they limit; None: they don't."""
    if name not in KEYS:
        return None
    return (name, *(str(data.get(member.replace("_", "-"))) for member in KEYS[name]))


def _kept(events: list[Any]) -> list[Any]:
    """Leave out what the harness itself causes, and all between first and last of a kind."""
    kept: list[Any] = []
    last: dict[tuple[str, ...], Any] = {}
    for name, data in events:
        kind = _kind(name, data)
        if name == "BLOCK_EXPORT_DELETED":
            continue
        if kind is None or kind not in last:
            kept.append([name, data])
        if kind is not None:
            last[kind] = [name, data] if kind in last else None
    return kept + [["last", *last[kind]] for kind in sorted(last) if last[kind]]


# vhostblk.


async def run_ours(case: Case, directory: Path) -> Outcomes:
    """Go through a case in this process."""
    events: list[Event] = []
    async with Daemon() as daemon:
        daemon.events.listen(events.append)
        steps = []
        for step in case.steps:
            if step.what in _IO:
                outcome = await _our_io(daemon, step, directory)
            else:
                outcome = await execute(daemon, step.what, _placed(step.arguments, directory))
            steps.append(_unplaced(_comparable(outcome), directory))
    told = [(event.name, msgspec.to_builtins(event.data)) for event in events]
    return Outcomes(steps, _unplaced(_kept(told), directory))


async def _our_io(daemon: Daemon, step: Step, directory: Path) -> Any:
    if step.what == "export":
        node, writable = step.arguments
        addr = {"type": "unix", "path": str(directory / f"{step.where}.sock")}
        members = {"type": "vhost-user-blk", "id": step.where, "node-name": node}
        answer = await execute(
            daemon, "block-export-add", {**members, "addr": addr, "writable": writable}
        )
        return answer if "return" not in answer else daemon.exports[step.where].backend.size
    if step.what == "unexport":
        answer = await execute(daemon, "block-export-del", {"id": step.where, "mode": "hard"})
        async with asyncio.timeout(30):
            while step.where in daemon.exports:  # noqa: ASYNC110 -- nothing tells of it
                await asyncio.sleep(0.001)
        return answer
    if step.where not in daemon.exports:
        return "no export"
    backend = daemon.exports[step.where].backend
    try:
        async with asyncio.timeout(30):
            return await asyncio.create_task(_on_backend(backend, step.what, step.arguments))
    except OSError as error:
        return _failed(as_sent(error.errno or errno.EIO))


async def _on_backend(backend: BlockBackend, what: str, arguments: Any) -> Any:
    match what, arguments:
        case "read", (offset, length):
            iov = IoVec.allocate(length)
            iov.fill(0xEE)
            async with backend.request():
                await backend.preadv(offset, iov)
            return runs_of(iov.to_bytes())
        case "write", (offset, length, byte, fua):
            iov = IoVec.from_buffers([bytearray([byte]) * length])
            async with backend.request():
                await backend.pwritev(offset, iov, WriteFlags.FUA if fua else WriteFlags.NONE)
        case "zero", (offset, length, unmap):
            async with backend.request():
                flags = WriteFlags.MAY_UNMAP if unmap else WriteFlags.NONE
                await backend.pwrite_zeroes(offset, length, flags)
        case "discard", (offset, length):
            async with backend.request():
                await backend.pdiscard(offset, length)
        case "flush", _:
            async with backend.request():
                await backend.flush()
        case "status", (offset, length):
            async with backend.request():
                return await _our_status(backend, offset, length)
    return None


async def _our_status(backend: BlockBackend, offset: int, length: int) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    while length:
        extent = await _status_in_chain(backend, offset, length)
        flags = 0 if extent.status & BlockStatus.DATA else 1
        flags |= 2 if extent.status & BlockStatus.ZERO else 0
        if runs and runs[-1][1] == flags:
            runs[-1] = (runs[-1][0] + extent.length, flags)
        else:
            runs.append((extent.length, flags))
        offset += extent.length
        length -= extent.length
    return runs


async def _status_in_chain(backend: BlockBackend, offset: int, length: int) -> Extent:
    """Return the status of the first image that has something at `offset`."""
    extent = await backend.block_status(offset, length)
    image = allocation.next_image(backend.node)
    while not extent.status & BlockStatus.ALLOCATED and image is not None:
        if offset >= image.size:
            return Extent(extent.length, BlockStatus.ZERO)
        found = await image.block_status(offset, min(extent.length, image.size - offset))
        extent = replace(found, length=min(found.length, extent.length))
        image = allocation.next_image(image)
    return extent


# QEMU.


async def run_theirs(program: Program, case: Case, directory: Path) -> Outcomes:
    """Go through a case with a daemon of QEMU's."""
    socket_path = directory / "nbd.sock"
    arguments = ["--nbd-server", f"addr.type=unix,addr.path={socket_path},max-connections=0"]
    clients: dict[str, NbdClient] = {}
    async with running(program, directory / "log", arguments) as session:
        steps = []
        for step in case.steps:
            if step.what == "export":
                node, writable = step.arguments
                members = {"type": "nbd", "id": step.where, "node-name": node, "name": step.where}
                outcome: Any = await session.run(
                    "block-export-add", {**members, "writable": writable}
                )
                if "return" in outcome:
                    clients[step.where] = NbdClient(socket_path, step.where)
                    outcome = clients[step.where].size
            elif step.what == "unexport":
                if step.where in clients:
                    clients.pop(step.where).close()
                members = {"id": step.where, "mode": "hard"}
                outcome = await session.run("block-export-del", members)
                if "return" in outcome:
                    await session.wait_event("BLOCK_EXPORT_DELETED")
            elif step.what in _IO and step.where not in clients:
                outcome = "no export"
            elif step.what in _IO:
                outcome = _their_io(clients[step.where], step.what, step.arguments)
            else:
                outcome = await session.run(step.what, _placed(step.arguments, directory))
            steps.append(_unplaced(_comparable(outcome), directory))
        for client in clients.values():
            client.close()
        if any(_kind(*event) for event in session.events):
            await asyncio.sleep(INTERVAL)
            for _ in range(2):  # by the second answer the loop has sent what was due by then
                await session.run("query-block-exports")
        await session.run("quit")
        await asyncio.to_thread(session.process.wait, 20)
        events = [list(event) for event in session.events]
    return Outcomes(steps, _unplaced(_kept(events), directory))


def _their_io(client: NbdClient, what: str, arguments: Any) -> Any:
    try:
        match what, arguments:
            case "read", (offset, length):
                return runs_of(client.read(offset, length))
            case "write", (offset, length, byte, fua):
                client.write(offset, bytes([byte]) * length, Flag.FUA if fua else Flag.NONE)
            case "zero", (offset, length, unmap):
                client.write_zeroes(offset, length, Flag.NONE if unmap else Flag.NO_HOLE)
            case "discard", (offset, length):
                client.trim(offset, length)
            case "flush", _:
                client.flush()
            case "status", (offset, length):
                return client.status(offset, length)
    except OSError as error:
        return _failed(error.errno or errno.EIO)
    return None

# SPDX-License-Identifier: Apache-2.0
"""One script on QEMU's storage daemon and on vhostblk: same answers, or declared differences."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.differential.differences import problem
from tests.qmp_exports.daemons import QEMU_7, QEMU_10, VHOSTBLK, Program, running
from tests.qmp_exports.differences import normalized
from tests.qmp_exports.script import CASES, Case

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("program", [QEMU_7, QEMU_10], ids=lambda program: program.name)
def test_answers_are_the_same(program: Program, case: Case, tmp_path: Path) -> None:
    if not program.available:
        pytest.skip(f"{program.name} is not installed")

    ours, our_events = asyncio.run(run(VHOSTBLK, case, prepare(tmp_path / "a")))
    theirs, their_events = asyncio.run(run(program, case, prepare(tmp_path / "b")))
    problems = []
    declared = False
    for step, our, their in zip(case.steps, ours, theirs, strict=True):
        told = f"{step.command} {json.dumps(step.arguments)}\n  ours:   {our}\n  theirs: {their}"
        declared |= step.difference is not None and program.version in step.difference.versions
        if found := problem(step.difference, program.version, our, their):
            problems.append(f"{found}\n{told}")
    if not declared and our_events != their_events:
        problems.append(f"events\n  ours:   {our_events}\n  theirs: {their_events}")
    assert not problems, "\n".join(problems)


def prepare(directory: Path) -> Path:
    """Make a daemon's directory."""
    directory.mkdir()
    (directory / "disk.img").write_bytes(bytes(1 << 20))
    (directory / "other.img").write_bytes(bytes(64 << 10))
    return directory


async def run(program: Program, case: Case, directory: Path) -> tuple[list[Any], list[Any]]:
    """Go through a case; return the answers and, by name and data, the events."""
    answers = []
    async with running(program, directory / "log", case.arguments) as session:
        with socket.socket(socket.AF_UNIX) as front_end:
            for number, step in enumerate(case.steps):
                if case.connect and number == case.connect_after:
                    await connect(front_end, directory / case.connect)
                arguments = _placed(step.arguments, directory)
                answer = await session.run(step.command, arguments)
                answers.append(_unplaced(normalized(step.command, answer), directory))
        if case.steps[-1].command == "block-export-del" and "return" in answers[-1]:
            await session.wait_event("BLOCK_EXPORT_DELETED")
        return answers, _unplaced(session.events, directory)


async def connect(front_end: socket.socket, path: Path) -> None:
    """Connect a front-end, and have the daemon answer it: GET_FEATURES."""
    front_end.setblocking(False)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(60):
        await loop.sock_connect(front_end, str(path))
        await loop.sock_sendall(front_end, b"\1\0\0\0\1\0\0\0\0\0\0\0")
        assert await loop.sock_recv(front_end, 20)


def _placed(value: Any, directory: Path) -> Any:
    return json.loads(json.dumps(value).replace("{dir}", str(directory)))


def _unplaced(value: Any, directory: Path) -> Any:
    return json.loads(json.dumps(value).replace(str(directory), "{dir}"))

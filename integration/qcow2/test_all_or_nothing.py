# SPDX-License-Identifier: Apache-2.0
"""Commands that change an image's structures are all or nothing.

After a crash at any point, a failed request to the file, or a cancelled task, the image has its old
or its new state. An image that is used after such an error loses nothing, either: memory and the
file's header refer to the same structures.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import pytest

from integration.qcow2.commands import (
    COMMANDS,
    Command,
    Seen,
    count_past_end,
    find_harm,
    look,
    look_closely,
    prepare,
    using,
)
from integration.qcow2.record import crashes, flushed
from integration.qcow2.tools import run, write
from vhostblk.block.errors import BlockError

if TYPE_CHECKING:
    from pathlib import Path

    from integration.qcow2.record import Change, RecordingNode
    from vhostblk.block.drivers.qcow2.node import Qcow2Node
    from vhostblk.block.graph.backend import BlockBackend

parametrize = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)


class Run(NamedTuple):
    """The effects of a command that succeeds."""

    prepared: bytes
    #: The file after the image was opened, and the writes since.
    opened: bytes
    log: list[Change]
    before: Seen
    after: Seen
    #: The number of requests that change the file, and of event loop turns.
    requests: int
    turns: int


async def _run(command: Command, prepared: bytes) -> Run:
    async with using(command, prepared) as (file, node, backend):
        opened, requests, turns = bytes(file.data), file.requests, 0
        file.log.clear()
        task = asyncio.ensure_future(command.run(node, backend))
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        await task
        log, requests = file.log[:], file.requests - requests
        await backend.flush()
        before, after = await _seen(command, opened), await _seen(command, bytes(file.data))
        if len(before.data) != len(after.data):
            _check_size(command, before.data, after.data)
        return Run(prepared, opened, log, before, after, requests, turns)


def _check_size(command: Command, before: bytes, after: bytes) -> None:
    """Check that a resized disk has its former content, and zeroes behind it."""
    start, length = command.writes
    expected = before.ljust(len(after), b"\0")[: len(after)]
    assert after[:start] == expected[:start]
    assert after[start + length :] == expected[start + length :]


async def _seen(command: Command, state: bytes) -> Seen:
    """Return the view of an image in a file."""
    async with using(command, state, read_only=True) as (_, node, backend):
        assert not await find_harm(node._image)
        return await look_closely(node, backend)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


class Runs:
    """The runs of all commands; each is made when first needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._found: dict[str, Run] = {}

    def of(self, command: Command) -> Run:
        if command.name not in self._found:
            prepared = prepare(command, self._directory)
            self._found[command.name] = run(_run(command, prepared))
        return self._found[command.name]


def _compare(command: Command, seen: Seen, *allowed: Seen) -> None:
    """Check that a view is one of `allowed`; the command's data may be written in part."""
    start, length = command.writes
    stop = start + length
    written = [each.data[start:stop] for each in allowed]
    for each in allowed:
        if (
            (seen.backing_name, seen.snapshots) == (each.backing_name, each.snapshots)
            and seen.data[:start] == each.data[:start]
            and seen.data[stop:] == each.data[stop:]
            and (seen.kept == each.kept or not (seen.kept and each.kept))
            and all(
                byte in known for byte, *known in zip(seen.data[start:stop], *written, strict=True)
            )
        ):
            return
    pytest.fail(f"{seen.described} is not {' or '.join(each.described for each in allowed)}")


async def _check_state(command: Command, state: bytes, *allowed: Seen) -> None:
    """Check the state that a crash has left."""
    _compare(command, await _seen(command, state), *allowed)


@parametrize
def test_a_crash_leaves_the_old_or_the_new(command: Command, runs: Runs) -> None:
    known = runs.of(command)
    assert known.before != known.after

    async def main() -> None:
        count = 0
        for state in crashes(known.opened, known.log):
            await _check_state(command, state, known.before, known.after)
            if len(known.after.data) < len(known.before.data):
                await _check_end(command, state)
            count += 1
        assert count > 1

    run(main())


async def _check_end(command: Command, state: bytes) -> None:
    """See that nothing is mapped past the disk's end: QEMU would show it when the disk grows."""
    async with using(command, state, read_only=True) as (_, node, _):
        assert not await count_past_end(node._image)


@parametrize
@pytest.mark.parametrize("lasts", [False, True])
def test_a_request_that_fails_leaves_the_old(command: Command, runs: Runs, lasts: bool) -> None:
    """`lasts`: all later requests fail, too, until the command ends."""
    known = runs.of(command)

    async def main(number: int) -> None:
        async with using(command, known.prepared) as (file, node, backend):
            first = file.requests + number

            def fails_at(request: int) -> int:
                return errno.EIO if request == first or (lasts and request > first) else 0

            file.fails_at = fails_at
            failure = None
            try:
                await command.run(node, backend)
            except (OSError, BlockError) as error:
                failure = error
            file.fails_at = lambda _: 0
            # If only later steps fail, they are repeated later.
            expected = [known.after if failure is None else known.before]
            if command.writes != (0, 0):
                expected = [known.before, known.after]
            await _check_use(command, file, node, backend, known, expected)
        await _check_closed(command, bytes(file.data), known, tidy=not lasts)

    for number in range(known.requests):
        run(main(number))


@parametrize
def test_a_task_that_is_cancelled_leaves_the_old_or_the_new(command: Command, runs: Runs) -> None:
    known = runs.of(command)

    async def main(turns: int) -> None:
        async with using(command, known.prepared) as (file, node, backend):
            told = [backend.size]
            backend.on_resize(lambda: told.append(backend.size))
            task = asyncio.ensure_future(command.run(node, backend))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert told[-1] == node.size
            await _check_use(command, file, node, backend, known, [known.before, known.after])
        await _check_closed(command, bytes(file.data), known, tidy=True)

    for turns in range(0, known.turns, 2):  # each request takes two, of which one is as the other
        run(main(turns))


async def _check_use(
    command: Command,
    file: RecordingNode,
    node: Qcow2Node,
    backend: BlockBackend,
    known: Run,
    expected: list[Seen],
) -> None:
    """Check that an image is as expected, then use it: a crash loses nothing of that."""
    seen = await look(node, backend)
    assert node.size == backend.size == len(seen.data)
    _compare(command, seen, *expected)
    for state in (flushed(file.original, file.log), bytes(file.data)):
        await _check_state(command, state, known.before, known.after)
    if node._image.unusable:
        return
    await backend.flush()
    assert not node._image.header_file.in_doubt
    for state in (flushed(file.original, file.log), bytes(file.data)):
        await _check_state(command, state, seen)
    if command.needs_block:
        node._image.allocator.hint = 30 << node._image.geometry.refblock_bits
    for offset in range(0, len(seen.data) - 700, len(seen.data) // 5):
        await write(backend, offset, b"z" * 700)
    changed = await look(node, backend)
    if len(seen.snapshots) == len(known.before.kept):  # the command has made none
        changed = replace(changed, kept=known.before.kept)
    await backend.flush()
    for state in (flushed(file.original, file.log), bytes(file.data)):
        await _check_state(command, state, changed)


async def _check_closed(command: Command, state: bytes, known: Run, *, tidy: bool) -> None:
    """Check that no clusters were leaked."""
    async with using(command, state, read_only=True) as (_, node, _):
        assert not await find_harm(node._image)
        result = await node.check_image(repair=False)
        assert result.leaks == 0
        if len(known.after.data) < len(known.before.data):
            assert not await count_past_end(node._image)
        if not tidy:
            return
        assert result.corruptions == 0
        assert not await count_past_end(node._image)

# SPDX-License-Identifier: Apache-2.0
"""Exports that come and go, with and without clients."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.descriptors import open_fds
from tests.qmp_exports.direct import execute, refusal
from vhostblk import Daemon
from vhostblk.virtio_blk import lane

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from vhostblk.events import Event

    Run = Callable[[Callable[["Fixture"], Awaitable[None]]], None]

NODES = (
    "null-co,node-name=n,size=1048576",
    "null-co,node-name=ro,size=1048576,read-only=on",
)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until something holds."""
    async with asyncio.timeout(60):
        while True:
            if condition():
                return
            await asyncio.sleep(0)


class Fixture:
    """A daemon, its events, and clients that say nothing."""

    def __init__(self, daemon: Daemon, directory: Path) -> None:
        self.daemon = daemon
        self.directory = directory
        self.events: list[Event] = []
        daemon.events.listen(self.events.append)

    def options(self, name: str, **members: object) -> dict[str, object]:
        path = str(self.directory / name)
        addr = {"type": "unix", "path": path}
        return {"type": "vhost-user-blk", "id": name, "node-name": "n", "addr": addr, **members}

    async def add(self, name: str, **members: object) -> None:
        await execute(self.daemon, "block-export-add", self.options(name, **members))

    async def listed(self) -> list[tuple[str, bool]]:
        infos = await execute(self.daemon, "query-block-exports")
        return [(info["id"], info["shutting-down"]) for info in infos]

    async def gone(self, name: str) -> None:
        await until(lambda: self.deleted(name))

    def deleted(self, name: str) -> bool:
        return any(
            event.name == "BLOCK_EXPORT_DELETED" and getattr(event.data, "id", None) == name
            for event in self.events
        )

    @asynccontextmanager
    async def client(self, name: str) -> AsyncIterator[socket.socket]:
        """Connect; the export knows of it inside the block."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, str(self.directory / name))
            await until(lambda: self.daemon.exports[name].clients)
            yield connection


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(test: Callable[[Fixture], Awaitable[None]]) -> None:
        async def main() -> None:
            async with Daemon(objects=["iothread,id=io"], blockdevs=NODES) as daemon:
                await test(Fixture(daemon, tmp_path))

        asyncio.run(main())

    return run


def test_the_newest_is_listed_first(run: Run) -> None:
    async def test(fixture: Fixture) -> None:
        assert await execute(fixture.daemon, "query-block-exports") == []
        await fixture.add("a")
        await fixture.add("b", iothread="io", **{"fixed-iothread": False})
        assert await execute(fixture.daemon, "query-block-exports") == [
            {"id": name, "type": "vhost-user-blk", "node-name": "n", "shutting-down": False}
            for name in ("b", "a")
        ]

    run(test)


def test_removal_is_told_of(run: Run) -> None:
    async def test(fixture: Fixture) -> None:
        await fixture.add("a")
        await execute(fixture.daemon, "block-export-del", {"id": "a"})
        await fixture.gone("a")
        assert await fixture.listed() == []
        assert not (fixture.directory / "a").exists()
        await fixture.add("a")

    run(test)


def test_safe_removal_is_refused_while_a_client_is_connected(run: Run) -> None:
    async def test(fixture: Fixture) -> None:
        await fixture.add("a")
        async with fixture.client("a"):
            for mode in ({}, {"mode": "safe"}):
                assert await refusal(fixture.daemon, "block-export-del", {"id": "a", **mode}) == (
                    "GenericError",
                    "export 'a' still in use",
                )
            assert await fixture.listed() == [("a", False)]
        await until(lambda: not fixture.daemon.exports["a"].clients)
        await execute(fixture.daemon, "block-export-del", {"id": "a"})
        await fixture.gone("a")

    run(test)


def test_hard_removal_disconnects(run: Run) -> None:
    async def test(fixture: Fixture) -> None:
        await fixture.add("a")
        async with fixture.client("a") as connection:
            await execute(fixture.daemon, "block-export-del", {"id": "a", "mode": "hard"})
            assert await fixture.listed() == [("a", True)]
            _, message = await refusal(fixture.daemon, "block-export-del", {"id": "a"})
            assert message == "Export 'a' is already shutting down"
            again = fixture.options("a")
            _, message = await refusal(fixture.daemon, "block-export-add", again)
            assert message == "Block export id 'a' is already in use"
            await fixture.gone("a")
            assert await asyncio.get_running_loop().sock_recv(connection, 1) == b""
        assert await fixture.listed() == []

    run(test)


def test_closing_the_daemon_waits_for_a_removal(tmp_path: Path) -> None:
    async def main() -> None:
        async with Daemon(blockdevs=NODES) as daemon:
            fixture = Fixture(daemon, tmp_path)
            await fixture.add("a")
            await fixture.add("b")
            async with fixture.client("a"):
                await execute(daemon, "block-export-del", {"id": "a", "mode": "hard"})
                await daemon.close()
        assert fixture.deleted("a")
        assert fixture.deleted("b")

    asyncio.run(main())


def test_an_iothread_in_use_stays(run: Run) -> None:
    async def test(fixture: Fixture) -> None:
        await fixture.add("a", iothread="io")
        assert await refusal(fixture.daemon, "object-del", {"id": "io"}) == (
            "GenericError",
            "object 'io' is in use, can not be deleted",
        )
        await execute(fixture.daemon, "block-export-del", {"id": "a"})
        await fixture.gone("a")
        await execute(fixture.daemon, "object-del", {"id": "io"})
        options = fixture.options("a", iothread="io")
        _, message = await refusal(fixture.daemon, "block-export-add", options)
        assert message == 'iothread "io" not found'

    run(test)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_fixed_iothread_must_run_the_export(
    run: Run, fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VHOSTBLK_LANE", lane.Lane.PYTHON.value)

    async def test(fixture: Fixture) -> None:
        options = fixture.options("a", iothread="io", **{"fixed-iothread": fixed})
        if not fixed:
            await execute(fixture.daemon, "block-export-add", options)
            return
        assert (await refusal(fixture.daemon, "block-export-add", options))[1] == (
            "Export 'a' can't be moved to iothread 'io': the Python lane runs on the main thread"
        )
        assert await fixture.listed() == []

    run(test)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"id": "0"}, "Invalid block export id"),
        ({"node-name": "x"}, "Cannot find device='' nor node-name='x'"),
        ({"node-name": "ro", "writable": True}, "Cannot export read-only node as writable"),
        ({"iothread": "x"}, 'iothread "x" not found'),
        ({"num-queues": 0}, "num-queues must be greater than 0"),
        ({"x-vhostblk-socket-group": "a\0"}, "group 'a\0' not found"),
        ({"type": "nbd"}, "Export type 'nbd' is not available in vhostblk yet"),
    ],
)
def test_exports_that_are_refused(run: Run, members: dict[str, object], message: str) -> None:
    async def test(fixture: Fixture) -> None:
        options = fixture.options("a", **members)
        assert await refusal(fixture.daemon, "block-export-add", options) == (
            "GenericError",
            message,
        )
        assert await fixture.listed() == []

    run(test)


def test_two_at_once_do_not_get_the_same_id(run: Run) -> None:
    async def test(fixture: Fixture) -> None:
        results = await asyncio.gather(fixture.add("a"), fixture.add("a"), return_exceptions=True)
        assert [str(result) for result in results] == [
            "None",
            "Block export id 'a' is already in use",
        ]

    run(test)


def test_nothing_is_left_of_exports_that_are_gone(run: Run) -> None:
    def held() -> tuple[int, set[str]]:
        return len(open_fds()), {task.get_name() for task in asyncio.all_tasks()}

    async def test(fixture: Fixture) -> None:
        await fixture.add("first")  # what the first one brings stays
        async with fixture.client("first"):
            await execute(fixture.daemon, "block-export-del", {"id": "first", "mode": "hard"})
            await fixture.gone("first")
        fds, tasks = held()
        for number in range(30):
            name = f"e{number}"
            await fixture.add(name, iothread="io")
            refused = fixture.options("x", addr={"type": "unix", "path": "/nonexistent/x"})
            await refusal(fixture.daemon, "block-export-add", refused)
            async with fixture.client(name):
                await execute(fixture.daemon, "block-export-del", {"id": name, "mode": "hard"})
                await fixture.gone(name)
        await until(lambda: held()[0] <= fds and held()[1] <= tasks)

    run(test)


def test_statistics(run: Run) -> None:
    async def test(fixture: Fixture) -> None:
        await fixture.add("a")
        await fixture.add("b")
        expected = {"id": "a", "node-name": "n", "clients": 0, "queues": []}
        everything = await execute(fixture.daemon, "x-vhostblk-query-export-stats")
        assert [stats["id"] for stats in everything] == ["b", "a"]
        assert everything[1] == expected
        one = await execute(fixture.daemon, "x-vhostblk-query-export-stats", {"id": "a"})
        assert one == [expected]
        assert (await refusal(fixture.daemon, "x-vhostblk-query-export-stats", {"id": "x"}))[1] == (
            "Export 'x' is not found"
        )

    run(test)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (
            "nbd-server-start",
            {"addr": {"type": "unix", "data": {"path": "/nonexistent"}}},
            "The NBD server is not available in vhostblk yet",
        ),
        ("nbd-server-start", {}, "Parameter 'addr' is missing"),
        ("nbd-server-stop", {}, "NBD server not running"),
        ("nbd-server-add", {"device": "n"}, "NBD server not running"),
        ("nbd-server-add", {}, "Parameter 'device' is missing"),
        ("nbd-server-remove", {"name": "x"}, "Export 'x' is not found"),
    ],
)
def test_there_is_no_nbd_server(
    run: Run, command: str, arguments: dict[str, object], message: str
) -> None:
    async def test(fixture: Fixture) -> None:
        assert await refusal(fixture.daemon, command, arguments) == ("GenericError", message)

    run(test)

# SPDX-License-Identifier: Apache-2.0
"""Monitors on a character device in memory."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.qmp.support import NEGOTIATE, NEGOTIATE_OOB, MemoryChardev, messages, monitored, until
from vhostblk.block.errors import BlockError
from vhostblk.chardev.base import ChardevError
from vhostblk.daemon import Daemon
from vhostblk.errors import VhostblkError
from vhostblk.qmp.monitor import Monitor
from vhostblk.qmp.monitors import add_monitor
from vhostblk.qmp.registry import COMMANDS, Command
from vhostblk.schema.export import BlockExportDeleted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

VERSION = b'{"execute": "query-version"}'


async def settled() -> None:
    """Let everything happen that needs no time."""
    for _ in range(20):
        await asyncio.sleep(0)


def with_client(body: Callable[[Daemon, MemoryChardev], Awaitable[None]]) -> None:
    """Run `body` with a client that has negotiated."""

    async def main() -> None:
        async with Daemon() as daemon:
            chardev = MemoryChardev()
            monitors = monitored(daemon, chardev)
            chardev.take()
            assert await chardev.ask(NEGOTIATE_OOB) == [{"return": {}}]
            await body(daemon, chardev)
            await monitors.stop_commands()
            monitors.close()

    asyncio.run(main())


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what adds commands for the time of the test."""

    def add(name: str, handler: Callable[..., Awaitable[Any]], *, allow_oob: bool = False) -> None:
        monkeypatch.setitem(COMMANDS, name, Command(name, handler, allow_oob))

    return add


def test_a_conversation() -> None:
    async def main() -> None:
        async with Daemon() as daemon:
            chardev = MemoryChardev()
            monitored(daemon, chardev)
            (greeting,) = chardev.take()
            version = greeting["QMP"]["version"]
            assert version["qemu"] == {"major": 10, "minor": 0, "micro": 0}
            assert greeting["QMP"]["capabilities"] == ["oob"]
            (refused,) = await chardev.ask(VERSION)
            assert refused["error"]["class"] == "CommandNotFound"
            assert await chardev.ask(NEGOTIATE) == [{"return": {}}]
            (again,) = await chardev.ask(NEGOTIATE)
            assert again["error"]["class"] == "CommandNotFound"
            assert await chardev.ask(b"{'execute': 'query-version', 'id': [null, 'x']}") == [
                {"return": version, "id": [None, "x"]}
            ]
            (names,) = await chardev.ask(b'{"execute": "query-commands"}')
            assert {"name": "quit"} in names["return"]
            assert not daemon.stop_requested.is_set()
            assert await chardev.ask(b'{"execute": "quit"}') == [{"return": {}}]
            assert daemon.stop_requested.is_set()

    asyncio.run(main())


def test_pretty() -> None:
    async def main() -> None:
        async with Daemon() as daemon:
            chardev = MemoryChardev()
            monitored(daemon, chardev, pretty=True)
            text = chardev.sent.decode()
            assert text.startswith('{\r\n    "QMP": {\r\n        "version": {\r\n')
            assert text.endswith("}\r\n")

    asyncio.run(main())


def test_a_bad_capability() -> None:
    async def main() -> None:
        async with Daemon() as daemon:
            chardev = MemoryChardev()
            monitored(daemon, chardev)
            chardev.take()
            request = NEGOTIATE_OOB.replace(b"oob", b"bad")
            (refused,) = await chardev.ask(request)
            assert "does not accept value 'bad'" in refused["error"]["desc"]
            assert await chardev.ask(NEGOTIATE) == [{"return": {}}]

    asyncio.run(main())


def test_what_commands_raise(
    register: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[BaseException] = [
        BlockError("no such disk"),
        OSError(5, "Input/output error"),
        ValueError("oops"),
        GeneratorExit("left"),
        SystemExit("exit"),
    ]

    async def fail() -> None:
        raise errors.pop(0)

    async def body(_daemon: Daemon, chardev: MemoryChardev) -> None:
        register("fail", fail)
        replies = await chardev.ask(b'{"execute": "fail", "id": 1}' * 5, 5)
        assert [reply["error"] for reply in replies] == [
            {"class": "GenericError", "desc": "no such disk"},
            {"class": "GenericError", "desc": "Input/output error"},
            {"class": "GenericError", "desc": "Internal error: oops"},
            {"class": "GenericError", "desc": "Internal error: left"},
            {"class": "GenericError", "desc": "Internal error: exit"},
        ]

    with_client(body)
    lines = [record.message for record in caplog.records]
    assert lines == ["monitor 'c': command fail failed"] * 3


def test_a_command_that_waits_for_something_cancelled_is_answered(
    register: Callable[..., None],
) -> None:
    async def wait() -> None:
        waited = asyncio.get_running_loop().create_future()
        waited.cancel()
        await waited

    async def body(_daemon: Daemon, chardev: MemoryChardev) -> None:
        register("wait", wait)
        (reply,) = await chardev.ask(b'{"execute": "wait", "id": 1}')
        error = {"class": "GenericError", "desc": "Operation canceled"}
        assert reply == {"id": 1, "error": error}
        (reply,) = await chardev.ask(VERSION)  # the next command is not held up
        assert "return" in reply

    with_client(body)


def test_commands_that_are_cancelled_at_the_end_are_answered(
    register: Callable[..., None],
) -> None:
    async def main() -> None:
        async with Daemon() as daemon:
            chardev = MemoryChardev()
            monitor = Monitor(daemon, chardev, daemon.command_lock)
            monitor.start()
            chardev.connect()
            chardev.take()
            await chardev.ask(NEGOTIATE_OOB)
            register("hang", asyncio.Event().wait)
            await chardev.send(b'{"execute": "hang", "id": 1} {"execute": "hang", "id": 2}')
            await settled()
            await monitor.stop_commands(0)
            (reply,) = chardev.take()  # the second had not begun
            assert reply["id"] == 1
            assert reply["error"]["desc"] == "Operation canceled"
            monitor.close()

    asyncio.run(main())


def test_a_request_whose_check_fails_unexpectedly_is_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(_daemon: Daemon, chardev: MemoryChardev) -> None:
        def types(_self: Command) -> tuple[Any, Any]:
            raise ImportError("no module")

        with monkeypatch.context() as patch:
            patch.setattr(Command, "types", types)
            (reply,) = await chardev.ask(b'{"execute": "query-version", "id": 7}')
        error = {"class": "GenericError", "desc": "Internal error: no module"}
        assert reply == {"id": 7, "error": error}
        (reply,) = await chardev.ask(VERSION)
        assert "return" in reply

    with_client(body)
    (record,) = caplog.records
    assert record.message == "monitor 'c': a request failed"
    assert record.exc_info is not None


@pytest.mark.parametrize("answer", [{("a", "tuple"): 1}, object()])
def test_an_answer_that_is_no_json_is_an_internal_error(
    answer: object, register: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async def strange() -> object:
        return answer

    async def body(_daemon: Daemon, chardev: MemoryChardev) -> None:
        register("strange", strange)
        (reply,) = await chardev.ask(b'{"execute": "strange"}')
        assert reply["error"]["class"] == "GenericError"
        assert reply["error"]["desc"].startswith("Internal error: ")
        (reply,) = await chardev.ask(VERSION)
        assert "return" in reply

    with_client(body)
    (record,) = caplog.records
    assert record.exc_info is not None


def test_commands_of_all_monitors_take_turns(register: Callable[..., None]) -> None:
    running = 0

    async def slow() -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0)
        running -= 1

    async def main() -> None:
        register("slow", slow)
        async with Daemon() as daemon:
            chardevs = [MemoryChardev(str(number)) for number in range(20)]
            monitors = monitored(daemon, *chardevs)
            for chardev in chardevs:
                chardev.take()
            request = NEGOTIATE + b'{"execute": "slow"}' * 5
            replies = await asyncio.gather(*(chardev.ask(request, 6) for chardev in chardevs))
            assert replies == [[{"return": {}}] * 6] * 20
            await monitors.stop_commands()
            monitors.close()

    asyncio.run(main())


def test_out_of_band_overtakes(register: Callable[..., None]) -> None:
    gate = asyncio.Event()

    async def wait_for_gate() -> None:
        await gate.wait()

    async def open_gate() -> None:
        gate.set()

    async def body(_daemon: Daemon, chardev: MemoryChardev) -> None:
        register("wait", wait_for_gate)
        register("open", open_gate, allow_oob=True)
        request = b'{"execute": "wait", "id": 1}{"exec-oob": "open", "id": 2}'
        replies = await chardev.ask(request, 2)
        assert [reply["id"] for reply in replies] == [2, 1]

    with_client(body)


def test_events_come_after_the_negotiation() -> None:
    async def main() -> None:
        async with Daemon() as daemon:
            early, late = MemoryChardev("early"), MemoryChardev("late")
            monitors = monitored(daemon, early, late)
            early.take()
            late.take()
            await early.ask(NEGOTIATE)
            daemon.events.emit("BLOCK_EXPORT_DELETED", BlockExportDeleted(id="e"))
            daemon.events.emit("WITHOUT_DATA")
            first, second = early.take()
            assert first["event"] == "BLOCK_EXPORT_DELETED"
            assert first["data"] == {"id": "e"}
            assert abs(first["timestamp"]["seconds"] - time.time()) < 60
            assert 0 <= first["timestamp"]["microseconds"] < 1_000_000
            assert "data" not in second
            assert late.take() == []
            monitors.close()
            daemon.events.emit("WITHOUT_DATA")
            assert early.take() == []

    asyncio.run(main())


def test_the_next_client_begins_anew(register: Callable[..., None]) -> None:
    gate = asyncio.Event()
    done = []

    async def wait_for_gate() -> None:
        await gate.wait()
        done.append(True)

    async def body(_daemon: Daemon, chardev: MemoryChardev) -> None:
        register("wait", wait_for_gate)
        await chardev.send(b'{"execute": "wait", "id": 1}' * 3 + b'{"execute": "qu')
        await settled()
        chardev.hang_up()
        chardev.connect()
        (greeting,) = chardev.take()
        assert "QMP" in greeting
        (refused,) = await chardev.ask(VERSION)
        assert refused["error"]["class"] == "CommandNotFound"
        gate.set()
        assert await chardev.ask(NEGOTIATE) == [{"return": {}}]
        assert done == [True]

    with_client(body)


def test_a_client_that_does_not_read(caplog: pytest.LogCaptureFixture) -> None:
    async def body(daemon: Daemon, chardev: MemoryChardev) -> None:
        chardev.capacity = 10
        sender = asyncio.create_task(chardev.send(VERSION * 1000))
        await settled()
        assert not chardev.reading
        waiting = bytes(chardev.sent)
        assert len(messages(waiting.decode())) == 1
        for _ in range(100):
            daemon.events.emit("WITHOUT_DATA")
        await settled()
        assert bytes(chardev.sent) == waiting
        assert chardev.frontend is not None
        replies: list[Any] = []
        while len(replies) < 1000:
            replies += chardev.take()
            chardev.frontend.writable()
            await asyncio.sleep(0)
        assert all("return" in reply for reply in replies)
        await sender

    with caplog.at_level(logging.WARNING):
        with_client(body)
    assert 1 <= len(caplog.records) < 10
    assert "the client does not read; it is not told of WITHOUT_DATA" in caplog.records[0].message


def test_garbage_and_long_lines_cost_others_little() -> None:
    async def main() -> None:
        async with Daemon() as daemon:
            bad, good = MemoryChardev("bad"), MemoryChardev("good")
            monitors = monitored(daemon, bad, good)
            good.take()
            await good.ask(NEGOTIATE)
            assert bad.frontend is not None
            hostile = asyncio.create_task(bad.send(NEGOTIATE + b"}[{:,@" * 20_000 + b"[" * 10_000))
            turns = 0
            while not hostile.done():
                assert await good.ask(VERSION) != []
                turns += 1
                bad.sent.clear()
            assert turns > 10
            await bad.send(b"\n\xff" + b'{"execute": "query-version", "id": "end"}')
            await until(lambda: b'"end"' in bad.sent)
            monitors.close()

    asyncio.run(main())


def test_ids_nested_as_deep_as_it_goes() -> None:
    async def body(_daemon: Daemon, chardev: MemoryChardev) -> None:
        nested = b"[" * 1023 + b"]" * 1023
        (reply,) = await chardev.ask(b'{"execute": "query-version", "id": ' + nested + b"}")
        assert "return" in reply or "nested too deeply" in reply["error"]["desc"]
        assert "return" in (await chardev.ask(VERSION))[0]

    with_client(body)


def test_one_front_end_a_device() -> None:
    async def main() -> None:
        async with Daemon() as daemon:
            chardev = MemoryChardev()
            monitors = monitored(daemon, chardev)
            with pytest.raises(ChardevError, match="chardev 'c' is already in use"):
                monitors.add(chardev)
            monitors.close()
            assert chardev.frontend is None

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("none", 'chardev "none" not found'),
        ("mode=control", "Parameter 'chardev' is missing"),
        ("none,mode=bad", "Parameter 'mode' does not accept value 'bad'"),
        ("none,pretty=maybe", "Parameter 'pretty' expects 'on' or 'off'"),
        ("none,bogus=1", "Parameter 'bogus' is unexpected"),
        ('{"chardev": "none", "mode": "bad"}', "Parameter 'mode' does not accept value 'bad'"),
    ],
)
def test_bad_options(options: str, said: str) -> None:
    async def main() -> None:
        async with Daemon() as daemon:
            with pytest.raises(VhostblkError) as caught:
                add_monitor(daemon, options)
            assert str(caught.value) == said

    asyncio.run(main())


def test_a_stop_waits_for_commands_and_takes_no_more(register: Callable[..., None]) -> None:
    gate = asyncio.Event()

    async def wait_for_gate() -> None:
        await gate.wait()

    async def body(_daemon: Daemon, chardev: MemoryChardev) -> None:
        register("wait", wait_for_gate)
        await chardev.send(b'{"execute": "wait", "id": 1}{"execute": "wait", "id": 2}')
        await settled()
        assert chardev.frontend is not None
        stopping = asyncio.create_task(chardev.frontend.stop_commands(30))  # type: ignore[attr-defined]
        await settled()
        gate.set()
        await stopping
        assert chardev.take() == [{"return": {}, "id": 1}]
        await settled()
        assert chardev.take() == []

    with_client(body)


def test_messages_are_ascii() -> None:
    async def body(_daemon: Daemon, chardev: MemoryChardev) -> None:
        request = {"execute": "query-version", "id": "é\U0001f600\x7f\0"}
        (reply,) = await chardev.ask(
            json.dumps(request, ensure_ascii=False).replace("\\u0000", "\\u0000").encode()
        )
        assert reply["id"] == request["id"]

    with_client(body)

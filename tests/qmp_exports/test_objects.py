# SPDX-License-Identifier: Apache-2.0
"""object-add, object-del and the object tree."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.qmp_exports.direct import execute, refusal
from vhostblk import Daemon
from vhostblk.schema.objects.iothread import IothreadProperties

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

IOTHREAD = {"qom-type": "iothread", "id": "io"}


def run(test: Callable[[Daemon], Awaitable[None]], *objects: dict[str, object]) -> None:
    async def main() -> None:
        async with Daemon(objects=objects) as daemon:
            await test(daemon)

    asyncio.run(main())


def names(infos: list[dict[str, object]]) -> list[object]:
    return [info["name"] for info in infos]


def is_running(thread: int) -> bool:
    return Path(f"/proc/self/task/{thread}").exists()


def test_objects_come_and_go() -> None:
    async def test(daemon: Daemon) -> None:
        await execute(daemon, "object-add", {**IOTHREAD})
        assert names(await execute(daemon, "qom-list", {"path": "/objects"})) == ["type", "io"]
        await execute(daemon, "object-del", {"id": "io"})
        assert names(await execute(daemon, "qom-list", {"path": "/objects"})) == ["type"]
        assert await refusal(daemon, "object-del", {"id": "io"}) == (
            "GenericError",
            "object 'io' not found",
        )
        await execute(daemon, "object-add", {**IOTHREAD})

    run(test)


def test_an_id_is_taken_once() -> None:
    async def test(daemon: Daemon) -> None:
        for name in ("io", "type"):
            assert await refusal(daemon, "object-add", {**IOTHREAD, "id": name}) == (
                "GenericError",
                f"attempt to add duplicate property '{name}' to object (type 'container')",
            )

    run(test, {**IOTHREAD})


@pytest.mark.parametrize("path", ["/objects/io", "objects/io", "io", "//objects//io/"])
def test_paths(path: str) -> None:
    async def test(daemon: Daemon) -> None:
        get = {"path": path, "property": "poll-max-ns"}
        assert await execute(daemon, "qom-get", get) == 32768
        assert names(await execute(daemon, "qom-list", {"path": path})) == [
            "type",
            "thread-pool-min",
            "aio-max-batch",
            "thread-pool-max",
            "poll-max-ns",
            "poll-grow",
            "poll-shrink",
        ]

    run(test, {**IOTHREAD})


def test_a_partial_path_that_fits_twice_is_ambiguous() -> None:
    async def test(daemon: Daemon) -> None:
        assert (await refusal(daemon, "qom-list", {"path": ""}))[1] == "Path '' is ambiguous"
        get = {"path": "", "property": "type"}
        assert await refusal(daemon, "qom-get", get) == ("DeviceNotFound", "Device '' not found")

    run(test)


@pytest.mark.parametrize("path", ["/none", "none", "/objects/io/poll-max-ns", "/type"])
def test_a_path_that_leads_nowhere(path: str) -> None:
    async def test(daemon: Daemon) -> None:
        expected = ("DeviceNotFound", f"Device '{path}' not found")
        assert await refusal(daemon, "qom-list", {"path": path}) == expected
        get = {"path": path, "property": "x"}
        assert await refusal(daemon, "qom-get", get) == expected
        assert await refusal(daemon, "qom-set", {**get, "value": 1}) == expected

    run(test, {**IOTHREAD})


def test_children_are_properties() -> None:
    async def test(daemon: Daemon) -> None:
        get = {"path": "/objects", "property": "io"}
        assert await execute(daemon, "qom-get", get) == "/objects/io"
        assert await execute(daemon, "qom-get", {"path": "/", "property": "objects"}) == "/objects"
        assert await refusal(daemon, "qom-set", {**get, "value": "/"}) == (
            "GenericError",
            "Property 'container.io' is not writable",
        )
        infos = await execute(daemon, "qom-list", {"path": "/objects"})
        assert infos[1] == {"name": "io", "type": "child<iothread>"}

    run(test, {**IOTHREAD})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("poll-max-ns", -1, "poll-max-ns value must be in range [0, 9223372036854775807]"),
        ("poll-max-ns", "5", "Invalid parameter type for 'poll-max-ns', expected: integer"),
        ("poll-max-ns", True, "Invalid parameter type for 'poll-max-ns', expected: integer"),
        ("poll-max-ns", None, "Invalid parameter type for 'poll-max-ns', expected: integer"),
        ("poll-max-ns", 2**63, "Invalid parameter type for 'poll-max-ns', expected: integer"),
        ("thread-pool-max", 0, "bad thread-pool-min/thread-pool-max values"),
        ("thread-pool-min", 65, "bad thread-pool-min/thread-pool-max values"),
        ("type", "x", "Property 'iothread.type' is not writable"),
        ("id", "x", "Property 'iothread.id' not found"),
        ("qom-type", "x", "Property 'iothread.qom-type' not found"),
        ("poll_max_ns", 1, "Property 'iothread.poll_max_ns' not found"),
    ],
)
def test_values_that_are_refused(name: str, value: object, message: str) -> None:
    async def test(daemon: Daemon) -> None:
        before = daemon.objects["io"].options
        arguments = {"path": "io", "property": name, "value": value}
        assert await refusal(daemon, "qom-set", arguments) == ("GenericError", message)
        assert daemon.objects["io"].options == before

    run(test, {**IOTHREAD})


@pytest.mark.parametrize("started", [False, True])
def test_a_property_is_set(started: bool) -> None:
    async def test(daemon: Daemon) -> None:
        if started:
            daemon._iothreads.start(["io"])
        arguments = {"path": "io", "property": "poll-max-ns", "value": 7}
        await execute(daemon, "qom-set", arguments)
        assert await execute(daemon, "qom-get", {"path": "io", "property": "poll-max-ns"}) == 7
        options = daemon.objects["io"].options
        assert isinstance(options, IothreadProperties)
        assert options.poll_max_ns == 7

    if started:
        pytest.importorskip("vhostblk.engine._engine")
    run(test, {**IOTHREAD})


def test_removing_an_iothread_ends_its_thread() -> None:
    pytest.importorskip("vhostblk.engine._engine")

    async def test(daemon: Daemon) -> None:
        (iothread,) = daemon._iothreads.start(["io"])
        thread = iothread.thread_id
        assert is_running(thread)
        await execute(daemon, "object-del", {"id": "io"})
        assert not is_running(thread)

    run(test, {**IOTHREAD})


def test_types() -> None:
    async def test(daemon: Daemon) -> None:
        creatable = await execute(daemon, "qom-list-types", {"implements": "user-creatable"})
        assert {"name": "iothread", "parent": "event-loop-base"} in creatable
        assert {"name": "throttle-group", "parent": "object"} in creatable
        assert not any(each.get("abstract") for each in creatable)
        everything = await execute(daemon, "qom-list-types", {"abstract": True})
        assert {"name": "object", "abstract": True} in everything
        assert {"name": "container", "parent": "object"} in everything
        assert await execute(daemon, "qom-list-types", {"implements": "none"}) == []
        properties = await execute(daemon, "qom-list-properties", {"typename": "iothread"})
        assert properties[0] == {"name": "type", "type": "string"}
        assert {"name": "poll-grow", "type": "int"} in properties
        assert await refusal(daemon, "qom-list-properties", {"typename": "none"}) == (
            "DeviceNotFound",
            "Class 'none' not found",
        )
        assert await refusal(daemon, "qom-list-properties", {"typename": "user-creatable"}) == (
            "GenericError",
            "Parameter 'typename' expects a QOM type",
        )

    run(test)

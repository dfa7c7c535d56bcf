# SPDX-License-Identifier: Apache-2.0
"""Managers as objects, nodes that refer to them, and the commands, with helpers of both kinds."""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import os
import re
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.descriptors import open_fds
from tests.pr import fake
from tests.pr.programs import has_qemus, running
from tests.qmp_exports.direct import execute, refusal
from tests.reservations.conftest import PATIENCE, helper
from vhostblk import Daemon
from vhostblk.errors import VhostblkError
from vhostblk.handover import configuration
from vhostblk.reservations import client
from vhostblk.reservations.sense import INVALID_FIELD, RESET, check_condition
from vhostblk.reservations.wire import Reply
from vhostblk.schema.base import UNSET
from vhostblk.schema.reservations import PrInAction, PrOutAction, PrReservation, PrType

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from vhostblk.events import Event
    from vhostblk.reservations.wire import Request

importlib.import_module("vhostblk.qmp.commands.reservations")
importlib.import_module("vhostblk.qmp.commands.block")

KEY = 0x1122334455667788
READ = {"node-name": "disk", "service-action": "read-keys"}
CLEAR = {"node-name": "disk", "service-action": "clear", "key": KEY}


def run(test: Callable[[Daemon], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with Daemon() as daemon:
            await test(daemon)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def manager(path: Path, name: str = "pr") -> dict[str, Any]:
    return {"qom-type": "pr-manager-helper", "id": name, "path": str(path)}


def node(device: str, **more: Any) -> dict[str, Any]:
    return {
        "driver": "host_device",
        "node-name": "disk",
        "filename": device,
        "pr-manager": "pr",
        **more,
    }


@contextmanager
def events(daemon: Daemon) -> Iterator[list[tuple[str, bool]]]:
    found: list[tuple[str, bool]] = []

    def note(event: Event) -> None:
        if event.name == "PR_MANAGER_STATUS_CHANGED":
            data: Any = event.data
            found.append((data.id, data.connected))

    daemon.events.listen(note)
    yield found
    daemon.events.forget(note)


def good(request: Request) -> Reply:
    return Reply(0, b"", bytes(8) if request.cdb[0] == 0x5E else b"")


def test_a_manager_comes_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "h.sock"

    async def test(daemon: Daemon) -> None:
        with events(daemon) as told:
            assert await execute(daemon, "query-pr-managers") == []
            await execute(daemon, "object-add", manager(path))
            assert told == [("pr", True)]
            shown = await execute(daemon, "query-pr-managers")
            assert shown == [{"id": "pr", "connected": True}]
            at = {"path": "/objects/pr", "property": "path"}
            assert await execute(daemon, "qom-get", at) == str(path)
            await execute(daemon, "qom-set", {**at, "value": "other"})
            assert configuration.objects(daemon) == [{**manager(path), "path": "other"}]
            await execute(daemon, "object-del", {"id": "pr"})
            assert await execute(daemon, "query-pr-managers") == []
            assert told == [("pr", True)]

    before = open_fds()
    with helper(path, good):
        run(test)
    assert open_fds() <= before


def test_a_helper_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none"

    async def test(daemon: Daemon) -> None:
        with events(daemon) as told:
            assert await refusal(daemon, "object-add", manager(path)) == (
                "GenericError",
                f"Failed to connect to '{path}': No such file or directory",
            )
            assert not daemon.objects
            assert await execute(daemon, "query-pr-managers") == []
            assert not told

    run(test)


@pytest.mark.parametrize("driver", ["file", "host_device"])
def test_a_manager_that_is_none(tmp_path: Path, driver: str) -> None:
    """The file is not even opened."""
    options = {**node(str(tmp_path / "none")), "driver": driver}

    async def test(daemon: Daemon) -> None:
        assert (await refusal(daemon, "blockdev-add", options))[1] == (
            "No persistent reservation manager with id 'pr'"
        )
        await execute(daemon, "object-add", {"qom-type": "iothread", "id": "pr"})
        assert (await refusal(daemon, "blockdev-add", options))[1] == (
            "Object with id 'pr' is not a persistent reservation manager"
        )
        # QEMU 10.0.13 hangs with the next command on the graph.
        await execute(daemon, "blockdev-add", {"driver": "null-co", "node-name": "n"})

    run(test)


def test_a_manager_that_a_node_refers_to(tmp_path: Path, device: str) -> None:
    path = tmp_path / "h.sock"

    async def test(daemon: Daemon) -> None:
        await execute(daemon, "object-add", manager(path))
        await execute(daemon, "blockdev-add", node(device))
        assert (await refusal(daemon, "object-del", {"id": "pr"}))[1] == (
            "object 'pr' is in use, can not be deleted"
        )
        other = node(device)
        del other["pr-manager"]
        reopened = await refusal(daemon, "blockdev-reopen", {"options": [other]})
        assert reopened[1] == "Option 'pr-manager' cannot be reset to its default value"
        await execute(daemon, "blockdev-reopen", {"options": [node(device)]})
        await execute(daemon, "blockdev-del", {"node-name": "disk"})
        failing = node(str(tmp_path / "none"))
        await refusal(daemon, "blockdev-add", failing)
        await execute(daemon, "object-del", {"id": "pr"})

    with helper(path, good):
        run(test)


def test_a_regular_file_has_a_manager_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "h.sock"
    (tmp_path / "file").write_bytes(bytes(512))
    options = {**node(str(tmp_path / "file")), "driver": "file"}

    async def test(daemon: Daemon) -> None:
        await execute(daemon, "object-add", manager(path))
        await execute(daemon, "blockdev-add", options)
        assert (await refusal(daemon, "x-vhostblk-pr-in", READ))[1] == (
            "node 'disk' (file) is not a device of the host"
        )

    with helper(path, good):
        run(test)


def test_a_node_without_manager(device: str) -> None:
    async def test(daemon: Daemon) -> None:
        options = node(device)
        del options["pr-manager"]
        await execute(daemon, "blockdev-add", options)
        assert (await refusal(daemon, "x-vhostblk-pr-in", READ))[1] == (
            "node 'disk' has no 'pr-manager'"
        )

    run(test)


def test_a_node_for_reading(tmp_path: Path, device: str) -> None:
    path = tmp_path / "h.sock"
    seen: list[Request] = []

    def note(request: Request) -> Reply:
        seen.append(request)
        return good(request)

    async def test(daemon: Daemon) -> None:
        await execute(daemon, "object-add", manager(path))
        await execute(daemon, "blockdev-add", node(device, **{"read-only": True}))
        assert (await refusal(daemon, "x-vhostblk-pr-out", CLEAR))[1] == (
            "node 'disk': clear: the node is read-only"
        )
        assert await execute(daemon, "x-vhostblk-pr-in", READ) == {"generation": 0, "keys": []}

    with helper(path, note):
        run(test)
    assert [request.cdb[0] for request in seen] == [0x5E]


def test_a_node_without_writers_is_opened_for_a_change(tmp_path: Path, device: str) -> None:
    path = tmp_path / "h.sock"
    seen: list[tuple[int, int]] = []

    def note(request: Request) -> Reply:
        mode = fcntl.fcntl(request.fd, fcntl.F_GETFL) & os.O_ACCMODE
        seen.append((request.cdb[0], mode))
        assert os.fstat(request.fd).st_rdev == Path(device).stat().st_rdev
        return good(request)

    async def test(daemon: Daemon) -> None:
        await execute(daemon, "object-add", manager(path))
        await execute(daemon, "blockdev-add", node(device, **{"auto-read-only": True}))
        await execute(daemon, "x-vhostblk-pr-in", READ)
        await execute(daemon, "x-vhostblk-pr-out", CLEAR)

    with helper(path, note):
        run(test)
    assert seen == [(0x5E, os.O_RDONLY), (0x5F, os.O_RDWR)]


def test_a_manager_stays_while_a_command_is_in_flight(tmp_path: Path, device: str) -> None:
    path = tmp_path / "h.sock"
    go = threading.Event()

    def slow(request: Request) -> Reply:
        assert go.wait(PATIENCE)
        return good(request)

    async def test(daemon: Daemon) -> None:
        await execute(daemon, "object-add", manager(path))
        await execute(daemon, "blockdev-add", node(device))
        task = asyncio.create_task(daemon.read_reservations("disk", PrInAction.READ_KEYS))
        await asyncio.sleep(0.02)
        await execute(daemon, "blockdev-del", {"node-name": "disk"})
        assert (await refusal(daemon, "object-del", {"id": "pr"}))[1] == (
            "object 'pr' is in use, can not be deleted"
        )
        go.set()
        assert (await task).keys == []
        await execute(daemon, "object-del", {"id": "pr"})

    with helper(path, slow):
        run(test)


def test_commands_of_the_python_api(tmp_path: Path, device: str) -> None:
    path = tmp_path / "h.sock"
    seen: list[tuple[bytes, bytes]] = []
    kind = PrType.EXCLUSIVE_ACCESS

    def disk(request: Request) -> Reply:
        seen.append((request.cdb, request.parameters))
        assert os.fstat(request.fd).st_rdev == Path(device).stat().st_rdev
        if request.cdb[0] == 0x5F:
            return Reply(0)
        return Reply(0, b"", bytes.fromhex("0000000500000010") + KEY.to_bytes(8, "big") +
                     bytes.fromhex("0000000000030000"))  # fmt: skip

    async def test(daemon: Daemon) -> None:
        daemon.add_object(manager(path))
        await daemon.add_blockdev(node(device))
        await daemon.change_reservations(
            "disk", PrOutAction.REGISTER, service_action_key=KEY, aptpl=True
        )
        await daemon.change_reservations("disk", PrOutAction.RESERVE, key=KEY, type=kind)
        status = await daemon.read_reservations("disk", PrInAction.READ_RESERVATION)
        assert status.generation == 5
        assert status.reservation == PrReservation(key=KEY, type=kind)
        assert status.keys is UNSET
        with pytest.raises(VhostblkError, match="Parameter 'type' is missing for 'release'"):
            await daemon.change_reservations("disk", PrOutAction.RELEASE, key=KEY)
        with pytest.raises(VhostblkError, match="none"):
            await daemon.read_reservations("none", PrInAction.READ_KEYS)

    with helper(path, disk):
        run(test)
    (register, registered), (reserve, reserved), (read, nothing) = seen
    assert (register[:3], reserve[:3], read[:3]) == (b"\x5f\0\0", b"\x5f\1\3", b"\x5e\1\0")
    assert registered == bytes(8) + KEY.to_bytes(8, "big") + bytes.fromhex("0000000001000000")
    assert reserved == KEY.to_bytes(8, "big") + bytes(16)
    assert nothing == b""


def test_refused_commands(tmp_path: Path, device: str) -> None:
    path = tmp_path / "h.sock"
    replies = [Reply(0x18), check_condition(INVALID_FIELD), Reply(0, b"", b"short")]

    async def test(daemon: Daemon) -> None:
        await execute(daemon, "object-add", manager(path))
        await execute(daemon, "blockdev-add", node(device))
        assert (await refusal(daemon, "x-vhostblk-pr-out", CLEAR))[1] == (
            "node 'disk': clear: reservation conflict"
        )
        assert (await refusal(daemon, "x-vhostblk-pr-in", READ))[1] == (
            "node 'disk': read-keys: check condition, sense 5/24/00"
        )
        assert (await refusal(daemon, "x-vhostblk-pr-in", READ))[1] == (
            "node 'disk': read-keys: the answer is cut short"
        )

    with helper(path, lambda _: replies.pop(0)):
        run(test)


def test_unit_attentions(tmp_path: Path, device: str) -> None:
    """A device that tells of a reset has not done the command: it is sent again, a few times."""
    path = tmp_path / "h.sock"
    attention = check_condition(RESET)
    replies = [attention, attention, Reply(0), *[attention] * 4]

    async def test(daemon: Daemon) -> None:
        await execute(daemon, "object-add", manager(path))
        await execute(daemon, "blockdev-add", node(device))
        await execute(daemon, "x-vhostblk-pr-out", CLEAR)
        assert "sense 6/29/00" in (await refusal(daemon, "x-vhostblk-pr-out", CLEAR))[1]

    with helper(path, lambda _: replies.pop(0)):
        run(test)
    assert not replies


def test_the_helper_ends_and_comes_back(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAUSE", 0.01)
    path = tmp_path / "h.sock"

    async def test(daemon: Daemon) -> None:
        with events(daemon) as told, ExitStack() as stack:
            with helper(path, good):
                await execute(daemon, "object-add", manager(path))
                await execute(daemon, "blockdev-add", node(device))
            os.unlink(path)  # noqa: PTH108 (in a coroutine)
            assert (await refusal(daemon, "x-vhostblk-pr-in", READ))[1] == (
                "node 'disk': read-keys: check condition, sense b/08/00"
            )
            assert await execute(daemon, "query-pr-managers") == [{"id": "pr", "connected": False}]
            assert told == [("pr", True), ("pr", False)]
            stack.enter_context(helper(path, good))
            await execute(daemon, "x-vhostblk-pr-in", READ)
            assert told == [("pr", True), ("pr", False), ("pr", True)]
            await daemon.close()

    run(test)


def test_the_kernel_as_manager(device: str) -> None:
    """Loop devices know no reservations; disks are in `integration`."""

    async def test(daemon: Daemon) -> None:
        made = {"qom-type": "x-vhostblk-pr-manager-kernel", "id": "pr"}
        await execute(daemon, "object-add", made)
        assert await execute(daemon, "query-pr-managers") == [{"id": "pr", "connected": True}]
        await execute(daemon, "blockdev-add", node(device))
        for name, arguments in (("x-vhostblk-pr-in", READ), ("x-vhostblk-pr-out", CLEAR)):
            # Linux before 6.19 doesn't know the call at all.
            said = (await refusal(daemon, name, arguments))[1]
            assert re.search(r"check condition, sense 5/2[04]/00$", said)
        assert configuration.objects(daemon) == [made]

    run(test)


@pytest.mark.parametrize("qemu", [False, True], ids=["ours", "qemu"])
def test_both_helpers(tmp_path: Path, device: str, library: Path, qemu: bool) -> None:
    """The manager works with QEMU's helper, too: what it sends gets to the device."""
    if qemu and not has_qemus():
        pytest.skip("QEMU's helper is not there")
    keys = bytes.fromhex("0000000700000010") + KEY.to_bytes(8, "big") + bytes(8)
    content = fake.Result(data=keys).encode()
    with Path(device).open("r+b") as file:
        file.write(content)

    async def test(daemon: Daemon) -> None:
        await execute(daemon, "object-add", manager(path))
        await execute(daemon, "blockdev-add", node(device))
        found = await execute(daemon, "x-vhostblk-pr-in", READ)
        assert found == {"generation": 7, "keys": [KEY, 0]}
        reserve = {"service-action": "reserve", "type": "write-exclusive-all-registrants"}
        await execute(daemon, "x-vhostblk-pr-out", {**CLEAR, **reserve})

    with running(tmp_path, library=library, qemu=qemu) as program:
        path = program.path
        run(test)
    fd = os.open(device, os.O_RDONLY)
    try:
        asked = fake.asked(fd)
    finally:
        os.close(fd)
    assert asked.cdb.hex() == "5f010700000000001800000000000000"
    assert asked.data[:24] == KEY.to_bytes(8, "big") + bytes(16)

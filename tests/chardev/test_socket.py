# SPDX-License-Identifier: Apache-2.0
"""The device `socket`: one client at a time, waiting, reconnecting, backpressure, the end."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.chardev.support import devices, noticed, until
from vhostblk.chardev.base import HIGH_WATER, ChardevError
from vhostblk.net.errors import SocketError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.chardev.support import Devices, Recorder
    from vhostblk.chardev.base import Chardev


def client_of(path: Path | str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(str(path))
    return sock


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[tuple[Devices, Chardev, Recorder]]:
    """Have a device that listens at a path, and its front-end."""
    async with devices() as made:
        yield made, *await made.make_with_frontend(f"socket,id=m,path={path},server=on,wait=off")


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[tuple[Devices, Chardev, Recorder, socket.socket]]:
    """Have one with a client, too."""
    async with serving(path) as (made, device, frontend):
        with client_of(path) as client:
            await until(lambda: device.is_open)
            yield made, device, frontend, client


def test_a_conversation(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        async with serving(path) as (_, device, frontend):
            assert device.filename == f"disconnected:unix:{path},server=on"
            with client_of(path) as client:
                client.send(b"hello")
                await until(lambda: frontend.data == b"hello")
                assert frontend.news == ["opened"]
                assert device.filename == f"unix:{path},server=on"
                assert device.write(b"you")
                assert client.recv(10) == b"you"
            await until(lambda: frontend.news == ["opened", "closed"])
            assert device.filename == f"disconnected:unix:{path},server=on"
        assert not path.exists()

    asyncio.run(main())


def test_the_next_client_is_served_when_the_first_has_left(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path / "s") as (_, _, frontend):
            first, second = client_of(tmp_path / "s"), client_of(tmp_path / "s")
            first.send(b"1")
            second.send(b"2")
            await until(lambda: frontend.data == b"1")
            first.close()
            await until(lambda: frontend.data == b"12")
            assert frontend.news == ["opened", "closed", "opened"]
            second.close()

    asyncio.run(main())


def test_hanging_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with connected(tmp_path / "s") as (_, device, frontend, client):
            device.write(b"bye")
            device.disconnect()
            assert client.recv(10) == b"bye"
            assert client.recv(10) == b""
            assert frontend.news == ["opened", "closed"]

    asyncio.run(main())


def test_a_client_that_does_not_read_is_refused_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with connected(tmp_path / "s") as (_, device, frontend, client):
            piece = bytes(1 << 16)
            taken = 0
            while device.write(piece):
                taken += len(piece)
            assert taken < HIGH_WATER + (1 << 20)
            assert not device.write(b"x")
            received = 0
            client.setblocking(False)
            while received < taken:
                try:
                    received += len(client.recv(1 << 20))
                except BlockingIOError:
                    await asyncio.sleep(0)
            await until(lambda: "writable" in frontend.news)
            await device.flush()
            assert device.write(b"x")

    asyncio.run(main())


def test_a_client_that_goes_while_data_waits_for_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with connected(tmp_path / "s") as (_, device, frontend, client):
            while device.write(bytes(1 << 16)):
                pass
            flushing = asyncio.create_task(device.flush())
            await asyncio.sleep(0)
            client.close()
            await flushing
            await until(lambda: "closed" in frontend.news)
            assert device.write(b"nobody hears this")

    asyncio.run(main())


def test_nothing_is_read_while_reading_is_paused(tmp_path: Path) -> None:
    async def main() -> None:
        async with connected(tmp_path / "s") as (made, device, frontend, client):
            device.pause_reading()
            client.send(b"x")
            await noticed(made)
            assert frontend.data == b""
            device.resume_reading()
            await until(lambda: frontend.data == b"x")

    asyncio.run(main())


def test_waiting_for_a_client(tmp_path: Path) -> None:
    async def main() -> None:
        async with devices() as made:
            making = asyncio.create_task(made.make(f"socket,id=m,path={tmp_path}/s,server=on"))
            await until((tmp_path / "s").exists)
            await noticed(made)
            assert not making.done()
            assert made.get("m") is None
            with client_of(tmp_path / "s"):
                assert (await making).is_open

    asyncio.run(main())


def test_waiting_is_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with devices() as made:
            making = asyncio.create_task(made.make(f"socket,id=m,path={tmp_path}/s,server=on"))
            await until((tmp_path / "s").exists)
            making.cancel()
            with pytest.raises(asyncio.CancelledError):
                await making
            assert not (tmp_path / "s").exists()
            assert not made.knows("m")

    asyncio.run(main())


def test_a_client_connects_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with devices() as made:
            with pytest.raises(SocketError) as caught:
                await made.make(f"socket,id=m,path={tmp_path}/s")
            assert str(caught.value) == (
                f"Failed to connect to '{tmp_path}/s': No such file or directory"
            )
            _, server = await made.make_with_frontend(
                f"socket,id=a,path={tmp_path}/s,server=on,wait=off"
            )
            client, frontend = await made.make_with_frontend(f"socket,id=b,path={tmp_path}/s")
            assert client.filename == f"unix:{tmp_path}/s"
            assert frontend.news == ["opened"]
            client.write(b"hi")
            await until(lambda: server.data == b"hi")

    asyncio.run(main())


def test_a_client_reconnects(tmp_path: Path) -> None:
    async def main() -> None:
        async with devices() as made:
            _, frontend = await made.make_with_frontend(
                f"socket,id=m,path={tmp_path}/s,reconnect-ms=1"
            )
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(tmp_path / "s"))
            listening.listen()
            for _ in range(3):
                listening.setblocking(False)
                connection, _ = await asyncio.get_running_loop().sock_accept(listening)
                connection.send(b"x")
                connection.close()
            await until(lambda: frontend.news.count("closed") == 3)
            assert frontend.data == b"xxx"
            listening.close()

    asyncio.run(main())


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_internet_addresses(host: str, shown: str) -> None:
    async def main() -> None:
        async with devices() as made:
            server = await made.make(
                f"socket,id=m,host={host},port=0,server=on,wait=off,nodelay=on"
            )
            assert server.filename.startswith(f"disconnected:tcp:{host}:")
            port = server.filename.removesuffix(",server=on").rpartition(":")[2]
            client = await made.make(f"socket,id=c,host={host},port={port}")
            await until(lambda: server.is_open)
            assert server.filename.startswith(f"tcp:{shown}:{port},server=on <-> {shown}:")
            assert client.filename.endswith(f" <-> {shown}:{port}")

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            pytest.skip(f"no {host} here")
    asyncio.run(main())


def test_abstract_addresses() -> None:
    async def main() -> None:
        async with devices() as made:
            name = "vhostblk-test-chardev"
            server = await made.make(f"socket,id=m,path={name},abstract=on,server=on,wait=off")
            assert server.filename == (f"disconnected:unix:{name},abstract=on,tight=on,server=on")
            await made.make(f"socket,id=c,path={name},abstract=on")
            await until(lambda: server.is_open)

    asyncio.run(main())


def test_inherited_descriptors(tmp_path: Path) -> None:
    async def main() -> None:
        async with devices() as made:
            ours, theirs = socket.socketpair()
            _, frontend = await made.make_with_frontend(f"socket,id=m,fd={theirs.detach()}")
            ours.send(b"x")
            await until(lambda: frontend.data == b"x")
            ours.close()
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(tmp_path / "s"))
            listening.listen()
            server = await made.make(f"socket,id=l,fd={listening.detach()},server=on,wait=off")
            assert server.filename == f"disconnected:unix:{tmp_path}/s,server=on"
            with client_of(tmp_path / "s"):
                await until(lambda: server.is_open)

    asyncio.run(main())


def test_a_device_without_front_end_keeps_what_comes(tmp_path: Path) -> None:
    async def main() -> None:
        async with connected(tmp_path / "s") as (made, device, first, client):
            device.detach()
            client.send(b"x")
            await noticed(made)
            assert first.data == b""
            second = type(first)()
            device.attach(second)
            with pytest.raises(ChardevError, match="chardev 'm' is already in use"):
                device.attach(first)
            await until(lambda: second.data == b"x")
            assert second.news == ["opened"]

    asyncio.run(main())

# SPDX-License-Identifier: Apache-2.0
"""The devices other than sockets."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest

from tests.chardev.support import devices, until
from vhostblk.chardev.base import ChardevError
from vhostblk.chardev.ringbuf import RingbufChardev

if TYPE_CHECKING:
    from pathlib import Path


def test_null() -> None:
    async def main() -> None:
        async with devices() as made:
            device, frontend = await made.make_with_frontend("null,id=m")
            assert device.write(b"x")
            assert device.filename == "null"
            assert frontend.news == ["opened"]

    asyncio.run(main())


def test_file(tmp_path: Path) -> None:
    async def main(append: str) -> None:
        async with devices() as made:
            source = tmp_path / "in"
            source.write_bytes(b"input" * 100_000)
            device, frontend = await made.make_with_frontend(
                f"file,id=m,path={tmp_path}/out,input-path={source},append={append}"
            )
            await until(lambda: len(frontend.data) == 500_000)
            await asyncio.sleep(0)
            assert device.write(b"out")
            assert frontend.news == ["opened"]

    asyncio.run(main("off"))
    asyncio.run(main("on"))
    assert (tmp_path / "out").read_bytes() == b"outout"
    asyncio.run(main("off"))
    assert (tmp_path / "out").read_bytes() == b"out"


def test_a_log_of_what_is_written(tmp_path: Path) -> None:
    async def main() -> None:
        async with devices() as made:
            device = await made.make(f"null,id=m,logfile={tmp_path}/log,logappend=on")
            device.write(b"ab")
            device.write(b"c")

    asyncio.run(main())
    assert (tmp_path / "log").read_bytes() == b"abc"


def test_pipe(tmp_path: Path) -> None:
    async def main() -> None:
        os.mkfifo(tmp_path / "p.in")
        os.mkfifo(tmp_path / "p.out")
        async with devices() as made:
            device, frontend = await made.make_with_frontend(f"pipe,id=m,path={tmp_path}/p")
            writer = os.open(tmp_path / "p.in", os.O_WRONLY)
            reader = os.open(tmp_path / "p.out", os.O_RDONLY | os.O_NONBLOCK)
            os.write(writer, b"x")
            await until(lambda: frontend.data == b"x")
            device.write(b"y")
            assert os.read(reader, 10) == b"y"
            os.close(writer)
            os.close(reader)
            await asyncio.sleep(0)
            assert frontend.news == ["opened"]

    asyncio.run(main())


def test_ringbuf() -> None:
    async def main() -> None:
        async with devices() as made:
            device = await made.make("ringbuf,id=m,size=8")
            assert isinstance(device, RingbufChardev)
            device.write(b"0123456789")
            assert device.read(4) == b"2345"
            device.write(b"abcd")
            assert device.read(100) == b"6789abcd"
            assert device.read(1) == b""

    asyncio.run(main())


def test_udp() -> None:
    async def main() -> None:
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(20)
        async with devices() as made:
            device, frontend = await made.make_with_frontend(
                f"udp,id=m,host=127.0.0.1,port={peer.getsockname()[1]},localaddr=127.0.0.1"
            )
            device.write(b"ping")
            data, name = peer.recvfrom(100)
            assert data == b"ping"
            peer.sendto(b"pong", name)
            await until(lambda: frontend.data == b"pong")
        peer.close()

    asyncio.run(main())


def test_pty(tmp_path: Path) -> None:
    async def main() -> None:
        async with devices() as made:
            device, frontend = await made.make_with_frontend(f"pty,id=m,path={tmp_path}/tty")
            assert str((tmp_path / "tty").readlink()) == device.answer["pty"]
            for _ in range(2):
                frontend.data = b""
                assert not device.is_open
                terminal = os.open(tmp_path / "tty", os.O_RDWR | os.O_NOCTTY)
                os.write(terminal, b"x")
                await until(lambda: device.is_open)
                await until(lambda: frontend.data == b"x")
                device.write(b"y")
                assert os.read(terminal, 10) == b"y"
                os.close(terminal)
                await until(lambda: not device.is_open)
            assert frontend.news == ["opened", "closed"] * 2
        assert not (tmp_path / "tty").is_symlink()

    asyncio.run(main())


def test_serial() -> None:
    async def main() -> None:
        master, slave = os.openpty()
        async with devices() as made:
            device, frontend = await made.make_with_frontend(
                f"serial,id=m,path={os.ttyname(slave)}"
            )
            os.write(master, b"x")
            await until(lambda: frontend.data == b"x")
            device.write(b"\n")
            assert os.read(master, 10) == b"\n"
            device.send_break()
        os.close(master)
        os.close(slave)

    asyncio.run(main())


def test_changing_and_removing() -> None:
    async def main() -> None:
        async with devices() as made:
            device, _ = await made.make_with_frontend("null,id=m")
            with pytest.raises(ChardevError, match="Chardev 'm' is busy"):
                await made.remove("m")
            with pytest.raises(ChardevError, match="does not support chardev hotswap"):
                await made.begin_change("m")
            with pytest.raises(ChardevError, match="Chardev with id 'm' already exists"):
                await made.make("null,id=m")
            device.detach()
            await made.remove("m")
            with pytest.raises(ChardevError, match="Chardev 'm' not found"):
                await made.remove("m")

    asyncio.run(main())

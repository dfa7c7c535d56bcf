# SPDX-License-Identifier: Apache-2.0
"""Hostile clients cost their own connection only: the next client is served at once."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.chardev.support import devices, until
from tests.qmp_exports.daemons import Program
from tests.tls.monitors import PATIENCE, SERVED, client_context, connect, monitor, outcome
from tests.tls.sessions import Pair, x509
from vhostblk import Daemon
from vhostblk.chardev.socket import MAX_HANDSHAKES, SocketChardev
from vhostblk.net import handshake

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.qmp_exports.daemons import Session
    from tests.tls.certificates import Places

#: vhostblk with no bound for handshakes: who waited for another one's would wait for ever.
_CODE = """\
from vhostblk.net import handshake
handshake.TIMEOUT = 1e6
from vhostblk.cli import main
main()
"""
UNBOUND = Program("vhostblk", 0, (sys.executable, "-c", _CODE))


@asynccontextmanager
async def serving(places: Places, tmp_path: Path) -> AsyncIterator[tuple[Session, int]]:
    """Have a daemon, and check at the end that nothing of its clients is left."""
    objects = [f"tls-creds-x509,id=creds,endpoint=server,dir={places['good']}"]
    async with monitor(UNBOUND, tmp_path / "log", objects) as (session, port):
        before = descriptors(session)
        yield session, port
        async with asyncio.timeout(PATIENCE):
            assert await outcome(port, client_context(places["good"])) == SERVED
        await until(lambda: descriptors(session) <= before)
        assert "Traceback" not in (tmp_path / "log").read_text()


def descriptors(session: Session) -> int:
    return len(list(Path(f"/proc/{session.process.pid}/fd").iterdir()))


def hello(places: Places) -> bytes:
    """Return a client's first message."""
    pair = Pair(x509(places["good"], server=False), x509(places["good"], server=True))
    pair.client.feed(b"")
    first = pair.client.encode(b"")
    pair.close()
    return first


async def open_connections(port: int, count: int) -> list[asyncio.StreamWriter]:
    return [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(count)]


async def close(writers: list[asyncio.StreamWriter]) -> None:
    for writer in writers:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@pytest.mark.parametrize("said", ["nothing", "half", "most"])
def test_clients_that_say_too_little(places: Places, tmp_path: Path, said: str) -> None:
    first = hello(places)
    part = {"nothing": b"", "half": first[: len(first) // 2], "most": first}[said]

    async def main() -> None:
        async with serving(places, tmp_path) as (_, port):
            silent = await open_connections(port, 2 * MAX_HANDSHAKES)
            for writer in silent:
                writer.write(part)
            async with asyncio.timeout(PATIENCE):
                assert await outcome(port, client_context(places["good"])) == SERVED
            await close(silent)

    asyncio.run(main())


def test_a_client_that_is_slow(places: Places, tmp_path: Path) -> None:
    """One byte at a time, while others come and go."""

    async def main() -> None:
        async with serving(places, tmp_path) as (_, port):
            (slow,) = await open_connections(port, 1)
            context = client_context(places["good"])
            for number, byte in enumerate(hello(places)):
                slow.write(bytes([byte]))
                await slow.drain()
                if number % 100 == 0:
                    async with asyncio.timeout(PATIENCE):
                        assert await outcome(port, context) == SERVED
            await close([slow])

    asyncio.run(main())


GARBAGE = {
    "zeroes": bytes(1000),
    "ones": b"\xff" * 1000,
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "qmp": b'{"execute": "qmp_capabilities"}\n' * 100,
    "huge": b"\x16\x03\x01\xff\xff" + bytes(70_000),
    "alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "warning": b"\x15\x03\x03\x00\x02\x01\x00",
    "warnings": b"\x15\x03\x03\x00\x02\x01\x5a" * 10_000,
    "data": b"\x17\x03\x03\x00\x10" + bytes(16),
    "keys": b"\x14\x03\x03\x00\x01\x01" * 5000,
    "heartbeat": b"\x18\x03\x02\x00\x03\x01\x40\x00",
    "random": random.Random(3).randbytes(5000),
}


def test_clients_that_speak_something_else(places: Places, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(places, tmp_path) as (_, port):
            context = client_context(places["good"])
            first = hello(places)
            for start in (b"", first):
                for data in GARBAGE.values():
                    (writer,) = await open_connections(port, 1)
                    with suppress(OSError):
                        writer.write(start + data)
                        await writer.drain()
                    async with asyncio.timeout(PATIENCE):
                        assert await outcome(port, context) == SERVED
                    await close([writer])
        # What each does wrong is said, but not thousands of times.
        assert (tmp_path / "log").read_text().count("\n") < 40

    asyncio.run(main())


def test_garbage_in_a_conversation(places: Places, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(places, tmp_path) as (session, port):
            context = client_context(places["good"])
            for data in GARBAGE.values():
                async with asyncio.timeout(PATIENCE):
                    client = await connect(port, context)
                transport = client.writer.transport
                raw = transport.get_extra_info("socket")
                with suppress(OSError):
                    os.write(raw.fileno(), data[:4000])
                async with asyncio.timeout(PATIENCE):
                    with suppress(OSError, ssl.SSLError):
                        await client.reader.read()
                await client.close()
            assert await session.run("query-version") != {}

    asyncio.run(main())


def test_renegotiation(places: Places, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(places, tmp_path) as (_, port):
            process = await asyncio.create_subprocess_exec(
                *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2"),
                *("-cert", str(places["good"] / "client-cert.pem")),
                *("-key", str(places["good"] / "client-key.pem")),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            assert process.stdin is not None
            assert process.stdout is not None
            async with asyncio.timeout(PATIENCE):
                await process.stdout.readuntil(b'{"QMP"')
                process.stdin.write(b"R\n")
                said = await process.stdout.read()
                await process.wait()
            assert b"RENEGOTIATING" in said
            log = tmp_path / "log"
            await until(lambda: "Rehandshake was requested by the peer" in log.read_text())

    asyncio.run(main())


def test_keys_are_changed_by_a_client(places: Places, tmp_path: Path) -> None:
    """By `k` and `K`, of which the second asks for new keys of the server's too."""

    async def main() -> None:
        async with serving(places, tmp_path) as (_, port):
            process = await asyncio.create_subprocess_exec(
                *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3"),
                *("-cert", str(places["good"] / "client-cert.pem")),
                *("-key", str(places["good"] / "client-key.pem")),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            assert process.stdin is not None
            assert process.stdout is not None
            async with asyncio.timeout(PATIENCE):
                await process.stdout.readuntil(b'{"QMP"')
                for number, words in enumerate(
                    (b'{"execute":"qmp_capabilities"}', b'{"execute":"query-version"}'), 1
                ):
                    process.stdin.write(b"K\n" if number == 1 else b"k\n")
                    await process.stdout.readuntil(b"KEYUPDATE")
                    process.stdin.write(words + b"\n")
                    await process.stdout.readuntil(b'"return"')
                process.kill()
                await process.wait()

    asyncio.run(main())


def test_handshakes_are_bounded_in_time(
    places: Places, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(handshake, "TIMEOUT", 0.05)

    async def main() -> None:
        objects = [f"tls-creds-x509,id=creds,endpoint=server,dir={places['good']}"]
        async with Daemon(objects=objects) as daemon:
            device = await daemon.add_chardev(
                "socket,id=s,host=127.0.0.1,port=0,server=on,wait=off,tls-creds=creds"
            )
            assert isinstance(device, SocketChardev)
            port = device.listeners[0].socket.getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read() == b""
            await close([writer])
            await until(lambda: not device._handshakes)

    asyncio.run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "chardev 's': the handshake took more than 0 seconds"
    ]


def test_handshakes_are_bounded_in_number(places: Places) -> None:
    """When there are too many, the one that began first is dropped."""

    async def main() -> None:
        objects = [f"tls-creds-x509,id=creds,endpoint=server,dir={places['good']}"]
        async with Daemon(objects=objects) as daemon:
            device = await daemon.add_chardev(
                "socket,id=s,host=127.0.0.1,port=0,server=on,wait=off,tls-creds=creds"
            )
            assert isinstance(device, SocketChardev)
            port = device.listeners[0].socket.getsockname()[1]
            reader, first = await asyncio.open_connection("127.0.0.1", port)
            await until(lambda: len(device._handshakes) == 1)
            others = await open_connections(port, MAX_HANDSHAKES)
            async with asyncio.timeout(PATIENCE):
                assert await reader.read() == b""
            await until(lambda: len(device._handshakes) == MAX_HANDSHAKES)
            await close([first, *others])

    asyncio.run(main())


def test_who_is_through_waits_for_the_one_that_is_served(places: Places, tmp_path: Path) -> None:
    """Several handshakes are finished while nobody is served; all get their turn."""

    async def main() -> None:
        async with serving(places, tmp_path) as (_, port):
            context = client_context(places["good"])
            async with asyncio.timeout(PATIENCE):
                found = await asyncio.gather(*(outcome(port, context) for _ in range(5)))
            assert found == [SERVED] * 5

    asyncio.run(main())


def test_closing_a_device_ends_handshakes(places: Places) -> None:
    async def main() -> None:
        objects = [f"tls-creds-x509,id=creds,endpoint=server,dir={places['good']}"]
        async with Daemon(objects=objects) as daemon:
            device = await daemon.add_chardev(
                "socket,id=s,host=127.0.0.1,port=0,server=on,wait=off,tls-creds=creds"
            )
            assert isinstance(device, SocketChardev)
            port = device.listeners[0].socket.getsockname()[1]
            writers = await open_connections(port, 3)
            await until(lambda: len(device._handshakes) == 3)
            await daemon.remove_chardev("s")
            assert not device._handshakes
            await close(writers)

    asyncio.run(main())


def test_a_peer_that_makes_us_answer_and_does_not_read(tmp_path: Path) -> None:
    """It is not read from any more, so that memory is bounded; WebSocket's pings need answers."""
    from tests.net.frames import PING, frame, request

    async def main() -> None:
        async with devices() as made:
            device, recorder = await made.make_with_frontend(
                f"socket,id=s,path={tmp_path}/s,server=on,wait=off,websocket=on"
            )
            assert isinstance(device, SocketChardev)
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            writer.write(request())
            await reader.readuntil(b"\r\n\r\n")
            await until(lambda: recorder.news == ["opened"])
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            pings = frame(PING, b"x" * 125) * 1000
            stream = device._stream
            assert stream is not None
            for _ in range(200):
                writer.write(pings)
                await asyncio.sleep(0)
                if stream._stalled:
                    break
            await until(lambda: stream._stalled)
            assert len(stream._unsent) < 1 << 20
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            writer.write(frame(2, b"and now data"))
            drained = asyncio.create_task(reader.read(1 << 30))
            while recorder.data != b"and now data":
                await asyncio.sleep(0)
                if drained.done():
                    drained = asyncio.create_task(reader.read(1 << 30))
            drained.cancel()
            assert not stream._stalled
            writer.close()

    asyncio.run(main())

# SPDX-License-Identifier: Apache-2.0
"""Both daemons' sockets as clients and servers of each other."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import pytest

from tests.chardev.support import until
from tests.qmp_exports.daemons import QEMU_10, VHOSTBLK, running
from tests.tls.monitors import PATIENCE, REFUSED, SERVED, monitor, port_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.qmp_exports.daemons import Program, Session
    from tests.tls.certificates import Places

programs = [VHOSTBLK, QEMU_10]

#: Certificates of the server, the name that the client connects to, and whether it goes on.
CASES = (
    ("good", "localhost", SERVED),
    ("good", "127.0.0.1", SERVED),
    ("server-other-host", "localhost", REFUSED),
    ("server-other-ca", "localhost", REFUSED),
    ("server-expired", "localhost", REFUSED),
    ("server-not-yet", "localhost", REFUSED),
    ("server-usage", "localhost", SERVED),
    ("server-purpose", "localhost", SERVED),
    ("server-is-ca", "localhost", REFUSED),
)


async def connected(session: Session, label: str) -> bool:
    found = await session.run("qom-get", {"path": f"/chardevs/{label}", "property": "connected"})
    return bool(found["return"])


async def wait(session: Session, label: str, expected: bool) -> None:
    async with asyncio.timeout(PATIENCE):
        while await connected(session, label) != expected:  # noqa: ASYNC110 (it is elsewhere)
            await asyncio.sleep(0.01)


class Server:
    """A server that waits for the greeting of a monitor, which its client is."""

    def __init__(self, directory: Path) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(directory / "server-cert.pem", directory / "server-key.pem")
        self.outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.port = 0

    async def run(self) -> asyncio.Server:
        # TLS is begun here, so that its failures are seen.
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = REFUSED
        try:
            await writer.start_tls(self.context)
            if b"QMP" in await reader.readline():
                found = SERVED
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.close()
        if not self.outcome.done():
            self.outcome.set_result(found)


@pytest.mark.parametrize("program", programs, ids=lambda each: each.name)
def test_which_servers_a_client_trusts(program: Program, places: Places, tmp_path: Path) -> None:
    async def main() -> None:
        good = places["good"]
        arguments = ["--object", f"tls-creds-x509,id=creds,endpoint=client,dir={good}"]
        servers = [Server(places[name]) for name, _, _ in CASES]
        listening = [await server.run() for server in servers]
        for number, ((_, host, _), server) in enumerate(zip(CASES, servers, strict=True)):
            arguments += [
                "--chardev",
                f"socket,id=c{number},host={host},port={server.port},ipv6=off,tls-creds=creds",
                *("--monitor", f"c{number}"),
            ]
        async with running(program, tmp_path / "log", arguments):
            async with asyncio.timeout(PATIENCE):
                found = [await server.outcome for server in servers]
        for each in listening:
            each.close()
            await each.wait_closed()
        assert found == [expected for _, _, expected in CASES]

    asyncio.run(main())


@pytest.mark.parametrize("server", programs, ids=lambda each: f"server-{each.name}")
@pytest.mark.parametrize("client", programs, ids=lambda each: f"client-{each.name}")
def test_each_connects_to_each(
    server: Program, client: Program, places: Places, tmp_path: Path
) -> None:
    async def main() -> None:
        async with (
            running(server, tmp_path / "server") as serving,
            running(client, tmp_path / "client") as connecting,
        ):
            await add(serving, "server", places["good"])
            port = await listen(serving)
            await add(connecting, "client", places["good"])
            await turn_to(connecting, port)
            await wait(serving, "s", True)
            await wait(connecting, "c", True)

    asyncio.run(main())


async def add(session: Session, endpoint: str, directory: Path) -> None:
    """Make credentials with this side's name."""
    options = {"qom-type": "tls-creds-x509", "sanity-check": False, "dir": str(directory)}
    answer = await session.run("object-add", {**options, "id": endpoint, "endpoint": endpoint})
    assert answer == {"return": {}}


async def listen(session: Session) -> int:
    """Make a server; return the port."""
    inet = {"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}}
    data = {"addr": inet, "tls-creds": "server", "wait": False}
    backend = {"type": "socket", "data": data}
    assert await session.run("chardev-add", {"id": "s", "backend": backend}) == {"return": {}}
    return await port_of(session, "s")


async def turn_to(session: Session, port: int, **more: object) -> None:
    """Make a client."""
    inet = {"type": "inet", "data": {"host": "localhost", "port": str(port), "ipv6": False}}
    data = {"addr": inet, "tls-creds": "client", "server": False, **more}
    backend = {"type": "socket", "data": data}
    assert await session.run("chardev-add", {"id": "c", "backend": backend}) == {"return": {}}


def test_a_client_tries_again_until_the_server_is_the_right_one(
    places: Places, tmp_path: Path
) -> None:
    async def main() -> None:
        log = tmp_path / "client"
        wrong = places["server-other-host"]
        objects = [f"tls-creds-x509,id=server,endpoint=server,dir={wrong}"]
        async with (
            monitor(VHOSTBLK, tmp_path / "log", objects, "tls-creds=server") as (server, port),
            running(VHOSTBLK, log) as client,
        ):
            await add(client, "client", places["good"])
            await turn_to(client, port, **{"reconnect-ms": 20})
            await until(lambda: "does not match the hostname localhost" in log.read_text())
            assert not await connected(client, "c")
            await server.run("object-del", {"id": "server"})
            await add(server, "server", places["good"])
            await wait(client, "c", True)
            assert log.read_text().count("\n") == 1

    asyncio.run(main())

# SPDX-License-Identifier: Apache-2.0
"""Daemons with a monitor on a TLS socket, and clients of it: Python's, GnuTLS's and OpenSSL's."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tests.qmp_exports.daemons import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.qmp_exports.daemons import Program, Session

#: Seconds for what takes milliseconds on an idle machine.
PATIENCE = 60

#: What became of an attempt to talk to the monitor.
SERVED, REFUSED = "served", "refused"


@asynccontextmanager
async def monitor(
    program: Program,
    log: Path,
    objects: Sequence[str],
    options: str = "tls-creds=creds",
    more: Sequence[str] = (),
) -> AsyncIterator[tuple[Session, int]]:
    """Run a daemon; yield another conversation with it, and the port of the monitor."""
    arguments = [word for text in objects for word in ("--object", text)]
    socket = f"socket,id=m,host=127.0.0.1,port=0,server=on,wait=off,{options}"
    arguments += ["--chardev", socket, "--monitor", "m", *more]
    async with running(program, log, arguments) as session:
        yield session, await port_of(session, "m")


async def port_of(session: Session, label: str) -> int:
    """Return the port on which a device listens."""
    for device in (await session.run("query-chardev"))["return"]:
        if device["label"] == label:
            found = re.search(r":(\d+),server=on", device["filename"])
            assert found is not None, device
            return int(found[1])
    raise AssertionError(f"no {label}")


def client_context(directory: Path | None, role: str = "client") -> ssl.SSLContext:
    """Return a client's settings: it shows this certificate, and takes any server's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if directory is not None:
        context.load_cert_chain(directory / f"{role}-cert.pem", directory / f"{role}-key.pem")
    return context


class Client:
    """A QMP client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def execute(self, command: str, arguments: Any = None) -> Any:
        """Run a command; return the reply."""
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self.writer.write(json.dumps(request).encode())
        while True:
            reply = json.loads(await self.reader.readline())
            if "event" not in reply:
                return reply

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (OSError, ssl.SSLError):
            pass


async def connect(port: int, context: ssl.SSLContext | None) -> Client:
    """Connect and wait for the greeting; raises OSError or ssl.SSLError."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        line = await reader.readline()
        if not line:
            writer.close()
            raise ConnectionResetError("no greeting")
        assert "QMP" in json.loads(line)
        client = Client(reader, writer)
        assert await client.execute("qmp_capabilities") == {"return": {}}
        return client


async def outcome(port: int, context: ssl.SSLContext) -> str:
    """Return whether a client is served."""
    try:
        client = await connect(port, context)
    except (OSError, ssl.SSLError):
        return REFUSED
    await client.close()
    return SERVED


async def program_outcome(*words: str) -> str:
    """Return whether a program that connects its standard streams to the monitor is served."""
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    said = b""
    try:
        async with asyncio.timeout(PATIENCE):
            while b'{"QMP"' not in said:
                data = await process.stdout.read(1 << 16)
                if not data:
                    return REFUSED
                said += data
            process.stdin.close()
            return SERVED
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()

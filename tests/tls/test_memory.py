# SPDX-License-Identifier: Apache-2.0
"""Keys are gone from memory when the credentials are, also after they were used."""

from __future__ import annotations

import asyncio
import base64
import subprocess
from typing import TYPE_CHECKING

from tests.objects.test_hidden import in_memory
from tests.qmp_exports.daemons import VHOSTBLK
from tests.tls.certificates import PSK
from tests.tls.monitors import SERVED, client_context, monitor, outcome, program_outcome

if TYPE_CHECKING:
    from pathlib import Path

    from tests.qmp_exports.daemons import Session
    from tests.tls.certificates import Places


def traces_of(key: Path) -> list[bytes]:
    """Return what gives an elliptic key away: the number, both ways round, and its text."""
    done = subprocess.run(
        ["openssl", "ec", "-in", str(key), "-noout", "-text"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.partition("priv:")[2].partition("pub:")[0]
    number = bytes.fromhex("".join(lines.split()).replace(":", ""))[-32:]
    words = key.read_text().splitlines()
    longest = max(words, key=len).encode()
    return [number[-24:], number[::-1][:24], longest, base64.b64encode(number)[4:36]]


async def renew(session: Session, old: dict[str, str], new: dict[str, str]) -> None:
    assert await session.run("object-del", {"id": old["id"]}) == {"return": {}}
    assert await session.run("object-add", new) == {"return": {}}


def test_a_private_key(places: Places, tmp_path: Path) -> None:
    make = places.states.make
    key = make.key()
    certificate = make.issue(places.states.ca, "localhost", "tls_www_server\nsigning_key", key=key)
    directory = tmp_path / "own"
    directory.mkdir()
    for name, source in (
        ("ca-cert.pem", places["good"] / "ca-cert.pem"),
        ("dh-params.pem", places["good"] / "dh-params.pem"),
        ("server-cert.pem", certificate.cert),
        ("server-key.pem", key),
    ):
        (directory / name).write_bytes(source.read_bytes())
    traces = traces_of(key)

    async def main() -> None:
        own = f"tls-creds-x509,id=creds,endpoint=server,dir={directory}"
        async with monitor(VHOSTBLK, tmp_path / "log", [own]) as (session, port):
            pid = session.process.pid
            context = client_context(places["good"])
            for _ in range(3):
                assert await outcome(port, context) == SERVED
            assert any(in_memory(pid, trace) for trace in traces)  # it finds what is there
            options = {"qom-type": "tls-creds-x509", "id": "creds", "endpoint": "server"}
            await renew(session, options, {**options, "dir": str(places["good"])})
            # The device lets go of the former ones with its next client.
            assert await outcome(port, context) == SERVED
            for trace in traces:
                assert in_memory(pid, trace) == [], trace

    asyncio.run(main())


def test_a_key_that_both_sides_know(places: Places, tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    directory.mkdir()
    path = directory / "keys.psk"
    path.write_text(f"qemu:{PSK}\n")
    path.chmod(0o600)

    async def main() -> None:
        own = f"tls-creds-psk,id=creds,endpoint=server,dir={directory}"
        async with monitor(VHOSTBLK, tmp_path / "log", [own]) as (session, port):
            pid = session.process.pid
            words = ("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-quiet")
            client = (*words, "-psk_identity", "qemu", "-psk", PSK)
            assert await program_outcome(*client) == SERVED
            traces = (PSK.encode(), bytes.fromhex(PSK))
            assert in_memory(pid, traces[0])
            options = {"qom-type": "tls-creds-x509", "id": "creds", "endpoint": "server"}
            await renew(session, options, {**options, "dir": str(places["good"])})
            assert await outcome(port, client_context(places["good"])) == SERVED
            for trace in traces:
                assert in_memory(pid, trace) == [], trace

    asyncio.run(main())

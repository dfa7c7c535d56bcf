# SPDX-License-Identifier: Apache-2.0
"""QEMU's tools as clients of TLS: they read a disk over NBD, or are refused."""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING

import pytest

from peers import debian
from tests.tls.certificates import CLIENT, PSK, lay_out
from tests.tls.monitors import PATIENCE
from tests.tls.nbd import serving
from vhostblk import Daemon
from vhostblk.net.handshake import Requirements
from vhostblk.net.tls.credentials import Credentials

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.tls.certificates import Places
    from tests.tls.nbd import NbdServer, Visit

SIZE = 1 << 20
PATTERN = 0x5A
#: A pattern, then noise.
CONTENT = bytes([PATTERN]) * (64 << 10) + random.Random(17).randbytes(SIZE - (64 << 10))

_QEMU_10 = debian.TRIXIE.path / "usr/bin"
#: How to run each QEMU's tools.
QEMUS: dict[str, dict[str, tuple[str, ...]]] = {
    "qemu-7": {name: (name,) for name in ("qemu-img", "qemu-io")},
    "qemu-10": {name: debian.command(_QEMU_10 / name) for name in ("qemu-img", "qemu-io")},
}
qemus = pytest.mark.parametrize("qemu", QEMUS)


def x509(endpoint: str, directory: Path, more: str = "") -> str:
    """Return the option; without the sanity check, which would refuse bad certificates."""
    check = "" if directory.name == "good" else ",sanity-check=off"
    return f"tls-creds-x509,id=tls,endpoint={endpoint},dir={directory}{check}{more}"


def psk(endpoint: str, directory: Path, more: str = "") -> str:
    return f"tls-creds-psk,id=tls,endpoint={endpoint},dir={directory}{more}"


async def run(qemu: str, tool: str, *words: str | Path) -> tuple[int, str]:
    """Run a tool; return its status and what it says."""
    process = await asyncio.create_subprocess_exec(
        *(*QEMUS[qemu][tool], *map(str, words)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # A sanitizer that this process may have doesn't know QEMU's coroutines.
        env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},
    )
    try:
        async with asyncio.timeout(PATIENCE):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode()


def image(server: NbdServer, more: str = ",tls-creds=tls") -> str:
    address = f"server.type=inet,server.host=localhost,server.ipv6=off,server.port={server.port}"
    return f"driver=nbd,{address}{more}"


async def next_visit(server: NbdServer) -> Visit:
    async with asyncio.timeout(PATIENCE):
        return await server.visits.get()


def wanted(daemon: Daemon, authz_id: str | None = None) -> Requirements:
    credentials = daemon.keys.find("tls", Credentials)
    assert credentials is not None
    return Requirements(credentials, authz_id)


def info(
    qemu: str, server: Sequence[str], client: str | None, more: str = ",tls-creds=tls"
) -> tuple[int, str, Visit]:
    """Look at a disk that a server with these objects has; return what both sides say."""
    objects = () if client is None else ("--object", client)

    async def main() -> tuple[int, str, Visit]:
        async with Daemon(objects=server) as daemon:
            authz_id = "az" if len(server) > 1 else None
            needed = wanted(daemon, authz_id)
            async with serving(bytearray(CONTENT), daemon.keys, needed) as serves:
                words = ("info", *objects, "--image-opts", image(serves, more))
                status, said = await run(qemu, "qemu-img", *words)
                return status, said, await next_visit(serves)

    return asyncio.run(main())


def assert_served(found: tuple[int, str, Visit], peer: str | None) -> None:
    status, said, visit = found
    assert status == 0, said
    assert "virtual size: 1 MiB (1048576 bytes)" in said
    assert visit.error == ""
    assert visit.peer == peer


def assert_refused(found: tuple[int, str, Visit], ours: str, theirs: str = "") -> None:
    """Check what both sides have said, and that nothing was read."""
    status, said, visit = found
    assert status == 1, said
    assert theirs in said
    assert visit.requests == 0
    assert visit.error
    assert ours in visit.error


#: Kinds of credentials: (server's, client's), and the name that the client proves.
def kinds(places: Places) -> dict[str, tuple[str, str, str | None]]:
    good, keys = places["good"], places["psk"]
    old = ",priority=NORMAL:-VERS-TLS1.3"
    anonymous = "tls-creds-anon,id=tls,endpoint="
    return {
        "x509": (x509("server", good), x509("client", good), "CN=alice"),
        "tls1.2": (x509("server", good), x509("client", good, old), "CN=alice"),
        "psk": (psk("server", keys), psk("client", keys), None),
        "anonymous": (f"{anonymous}server", f"{anonymous}client", None),
    }


@qemus
@pytest.mark.parametrize("kind", ["x509", "tls1.2", "psk", "anonymous"])
def test_data_both_ways(places: Places, tmp_path: Path, qemu: str, kind: str) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    same.write_bytes(CONTENT)
    other.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    ours, theirs, peer = kinds(places)[kind]
    disk = bytearray(CONTENT)

    async def main() -> None:
        async with Daemon(objects=[ours]) as daemon:
            async with serving(disk, daemon.keys, wanted(daemon)) as server:

                async def check(expected: int, tool: str, *words: str | Path) -> str:
                    status, said = await run(qemu, tool, *words)
                    assert status == expected, said
                    visit = await next_visit(server)
                    assert (visit.error, visit.peer) == ("", peer)
                    return said

                served = ("--object", theirs, "--image-opts", image(server))
                said = await check(0, "qemu-img", "info", *served)
                assert "virtual size: 1 MiB (1048576 bytes)" in said
                for status, path in ((0, same), (1, other)):
                    file = f"driver=raw,file.driver=file,file.filename={path}"
                    await check(status, "qemu-img", "compare", *served, file)
                read = f"read -P {PATTERN}"
                said = await check(0, "qemu-io", "-r", "-c", f"{read} 0 64k", *served)
                assert "read 65536/65536 bytes" in said
                said = await check(1, "qemu-io", "-r", "-c", f"{read} 60k 8k", *served)
                assert "Pattern verification failed" in said
                await check(0, "qemu-io", "-c", "write -P 7 100k 900k", *served)

    asyncio.run(main())
    assert disk == CONTENT[: 100 << 10] + bytes([7]) * (900 << 10) + CONTENT[1000 << 10 :]


@qemus
@pytest.mark.parametrize(
    ("client", "reason"),
    [
        ("client-expired", "The certificate is not trusted"),
        ("client-not-yet", "The certificate is not trusted"),
        # The client sends no certificate, as the server does not list the certificate's authority.
        ("client-other-ca", "Verify failed: No certificate was found."),
        ("revoked", "The certificate has been revoked"),
        ("ca-only", "Verify failed: No certificate was found."),
    ],
)
def test_clients_that_are_refused(places: Places, qemu: str, client: str, reason: str) -> None:
    trusting = "revoked" if client == "revoked" else "good"
    found = info(
        qemu, [x509("server", places[trusting])], x509("client", places[client], ",verify-peer=off")
    )
    assert_refused(found, reason)
    assert not found[2].secure


@qemus
def test_an_authority_that_has_the_name_of_the_right_one(
    places: Places, tmp_path: Path, qemu: str
) -> None:
    make = places.states.make
    forger = make.authority("the authority")
    client = make.issue(forger, "alice", CLIENT)
    directory = lay_out(tmp_path / "forged", ca=places.states.ca.cert, client=client)
    found = info(qemu, [x509("server", places["good"])], x509("client", directory))
    assert_refused(found, "The certificate hasn't got a known issuer")


@qemus
@pytest.mark.parametrize(
    ("server", "reason"),
    [
        ("server-expired", "The certificate is not trusted"),
        ("server-not-yet", "The certificate is not trusted"),
        ("server-other-ca", "The certificate hasn't got a known issuer"),
        ("server-other-host", "Certificate does not match the hostname localhost"),
    ],
)
def test_servers_that_are_refused(places: Places, qemu: str, server: str, reason: str) -> None:
    objects = [x509("server", places[server])]
    assert_refused(info(qemu, objects, x509("client", places["good"])), "", reason)
    unsure = x509("client", places["good"], ",verify-peer=off")
    assert_served(info(qemu, objects, unsure), "CN=alice")


@qemus
def test_a_server_that_has_another_name(places: Places, qemu: str) -> None:
    objects = [x509("server", places["server-other-host"])]
    more = ",tls-creds=tls,tls-hostname=elsewhere"
    assert_served(info(qemu, objects, x509("client", places["good"]), more), "CN=alice")


@qemus
def test_a_client_that_needs_no_certificate(places: Places, qemu: str) -> None:
    objects = [x509("server", places["good"], ",verify-peer=off")]
    assert_served(info(qemu, objects, x509("client", places["ca-only"])), None)


@qemus
@pytest.mark.parametrize(
    ("user", "key", "reason"),
    [
        ("qemu", PSK, None),
        ("bob", PSK[::-1], None),
        ("qemu", PSK[::-1], "TLS handshake failed"),
        ("nobody", PSK, "TLS handshake failed"),
    ],
)
def test_keys(
    places: Places, tmp_path: Path, qemu: str, user: str, key: str, reason: str | None
) -> None:
    file = tmp_path / "keys.psk"
    file.write_text(f"{user}:{key}\n")
    file.chmod(0o600)
    objects = [psk("server", places["psk"])]
    found = info(qemu, objects, psk("client", tmp_path, f",username={user}"))
    if reason is None:
        assert_served(found, None)
    else:
        assert_refused(found, reason, "TLS handshake failed")


DENIED = "TLS x509 authz check for CN=alice is denied"
GLOB = "rules.0.match=CN=al*,rules.0.policy=deny,rules.0.format=glob"


@qemus
@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ("authz-list,id=az,policy=allow", None),
        ("authz-list,id=az", DENIED),
        ("authz-list,id=az,rules.0.match=CN=alice,rules.0.policy=allow", None),
        ("authz-list,id=az,rules.0.match=CN=bob,rules.0.policy=allow", DENIED),
        (f"authz-list,id=az,policy=allow,{GLOB}", DENIED),
        ("authz-list,id=other,policy=allow", "Cannot find QAuthZ object ID az"),
    ],
)
def test_authorization(places: Places, qemu: str, rules: str, reason: str | None) -> None:
    good = places["good"]
    found = info(qemu, [x509("server", good), rules], x509("client", good))
    if reason is None:
        assert_served(found, "CN=alice")
    else:
        assert_refused(found, reason)


@qemus
def test_a_client_without_tls(places: Places, qemu: str) -> None:
    found = info(qemu, [x509("server", places["good"])], None, "")
    assert_refused(found, "the client gives up", "TLS")
    assert not found[2].secure

# SPDX-License-Identifier: Apache-2.0
"""QMP over TLS: one list of clients; vhostblk serves those that QEMU serves, and no others."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import pytest

from tests.chardev.support import until
from tests.qmp_exports.daemons import QEMU_10, VHOSTBLK
from tests.tls.certificates import PSK
from tests.tls.monitors import (
    REFUSED,
    SERVED,
    client_context,
    connect,
    monitor,
    outcome,
    program_outcome,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.qmp_exports.daemons import Program
    from tests.tls.certificates import Places

programs = pytest.mark.parametrize("program", [VHOSTBLK, QEMU_10], ids=lambda each: each.name)

CLIENTS = (
    *("good", "client-expired", "client-not-yet", "client-other-ca", "client-is-ca"),
    *("client-usage", "client-purpose"),
)


def server(places: Places, name: str = "good", more: str = "") -> str:
    return f"tls-creds-x509,id=creds,endpoint=server,dir={places[name]}{more}"


def outcomes(
    program: Program,
    log: Path,
    places: Places,
    clients: Sequence[str],
    objects: Sequence[str],
    options: str = "tls-creds=creds",
    said: str = "",
) -> dict[str, str]:
    """Return which clients are served; vhostblk's log has to say something at the end."""

    async def main() -> dict[str, str]:
        async with monitor(program, log, objects, options) as (_, port):
            found = {
                name: await outcome(port, client_context(places[name] if name else None))
                for name in clients
            }
            if program is VHOSTBLK:
                await until(lambda: said in log.read_text())
            return found

    return asyncio.run(main())


@programs
def test_certificates_of_clients(program: Program, places: Places, tmp_path: Path) -> None:
    log = tmp_path / "log"
    clients = (*CLIENTS, "good", "")
    last = "Verify failed"
    found = outcomes(program, log, places, clients, [server(places)], said=last)
    served = ("good", "client-usage", "client-purpose")
    assert found == {
        "": REFUSED,
        **dict.fromkeys(CLIENTS, REFUSED),
        **dict.fromkeys(served, SERVED),
    }
    if program is VHOSTBLK:
        said = log.read_text()
        assert "chardev 'm': Verify failed: No certificate was found." in said
        assert "chardev 'm': The certificate hasn't got a known issuer" in said
        assert "chardev 'm': The certificate is not trusted" in said


@programs
def test_a_revoked_client(program: Program, places: Places, tmp_path: Path) -> None:
    log = tmp_path / "log"
    said = "chardev 'm': The certificate has been revoked"
    found = outcomes(program, log, places, ("good",), [server(places, "revoked")], said=said)
    assert found == {"good": REFUSED}


@programs
def test_nobody_is_verified(program: Program, places: Places, tmp_path: Path) -> None:
    objects = [server(places, more=",verify-peer=off")]
    found = outcomes(program, tmp_path / "log", places, ("", "client-other-ca"), objects)
    assert found == {"": SERVED, "client-other-ca": SERVED}


ALICE, BOB = "CN=alice", "CN=bob"
GLOB = "rules.0.match=CN=a*,rules.0.policy=allow,rules.0.format=glob"
DENIED = "chardev 'm': TLS x509 authz check for CN=alice is denied"


@programs
@pytest.mark.parametrize(
    ("rules", "expected", "said"),
    [
        (f"authz-simple,id=az,identity={ALICE}", SERVED, ""),
        (f"authz-simple,id=az,identity={BOB}", REFUSED, DENIED),
        ("authz-list,id=az,policy=allow", SERVED, ""),
        ("authz-list,id=az", REFUSED, DENIED),
        (f"authz-list,id=az,policy=deny,{GLOB}", SERVED, ""),
        ("authz-list,id=az,rules.0.match=CN=a*,rules.0.policy=allow", REFUSED, DENIED),
        ("iothread,id=az", REFUSED, "chardev 'm': Object 'az' is not a QAuthZ subclass"),
        ("iothread,id=other", REFUSED, "chardev 'm': Cannot find QAuthZ object ID az"),
    ],
)
def test_authorization(
    program: Program, places: Places, tmp_path: Path, rules: str, expected: str, said: str
) -> None:
    objects = [server(places), rules]
    options = "tls-creds=creds,tls-authz=az"
    log = tmp_path / "log"
    found = outcomes(program, log, places, ("good",), objects, options, said)
    assert found == {"good": expected}


def test_a_list_file_that_is_replaced(places: Places, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text('{"policy": "deny"}')

    async def main() -> None:
        objects = [server(places), f"authz-list-file,id=az,filename={path}"]
        async with monitor(VHOSTBLK, tmp_path / "log", objects, "tls-creds=creds,tls-authz=az") as (
            _,
            port,
        ):
            context = client_context(places["good"])
            assert await outcome(port, context) == REFUSED
            new = tmp_path / "new"
            new.write_text('{"policy": "allow"}')
            new.rename(path)
            assert await outcome(port, context) == SERVED
            path.write_text("{")
            assert await outcome(port, context) == REFUSED

    asyncio.run(main())
    assert "authorization 'az' allows nobody" in (tmp_path / "log").read_text()


@programs
def test_keys_that_both_sides_know(program: Program, places: Places, tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    directory.mkdir()
    (directory / "keys.psk").write_text(f"qemu:{PSK}\n")
    (directory / "keys.psk").chmod(0o600)
    (directory / "dh-params.pem").write_bytes((places["good"] / "dh-params.pem").read_bytes())
    priority = "NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK"

    async def main() -> dict[str, str]:
        objects = [f"tls-creds-psk,id=creds,endpoint=server,dir={directory}"]
        found = {}
        async with monitor(program, tmp_path / "log", objects) as (_, port):
            gnutls = ("gnutls-cli", "localhost", "-p", str(port), "--priority", priority)
            openssl = ("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-quiet")
            for name, key in (("qemu", PSK), ("qemu", PSK[::-1]), ("bob", PSK)):
                found[f"gnutls {name} {key[:2]}"] = await program_outcome(
                    *gnutls, "--pskusername", name, "--pskkey", key
                )
                found[f"openssl {name} {key[:2]}"] = await program_outcome(
                    *openssl, "-psk_identity", name, "-psk", key
                )
            # A name that is added while the daemon runs.
            (directory / "keys.psk").write_text(f"bob:{PSK}\n")
            found["later"] = await program_outcome(*gnutls, "--pskusername", "bob", "--pskkey", PSK)
        return found

    assert asyncio.run(main()) == {
        "gnutls qemu 01": SERVED,
        "openssl qemu 01": SERVED,
        "gnutls qemu fe": REFUSED,
        "openssl qemu fe": REFUSED,
        "gnutls bob 01": REFUSED,
        "openssl bob 01": REFUSED,
        "later": SERVED,
    }


@programs
def test_no_proof_at_all(program: Program, places: Places, tmp_path: Path) -> None:
    async def main() -> dict[str, str]:
        # QEMU would make parameters first.
        objects = [f"tls-creds-anon,id=creds,endpoint=server,dir={places['good']}"]
        async with monitor(program, tmp_path / "log", objects) as (_, port):
            words = ("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-quiet", "-tls1_2")
            return {
                cipher: await program_outcome(*words, "-cipher", f"{cipher}:@SECLEVEL=0")
                for cipher in ("aNULL", "ALL:!aNULL")
            }

    assert asyncio.run(main()) == {"aNULL": SERVED, "ALL:!aNULL": REFUSED}


@programs
@pytest.mark.parametrize(
    ("priority", "expected"),
    [
        ("", {"-tls1_2": SERVED, "-tls1_3": SERVED}),
        ("NORMAL:-VERS-TLS1.3", {"-tls1_2": SERVED, "-tls1_3": REFUSED}),
        ("NORMAL:-VERS-ALL:+VERS-TLS1.3", {"-tls1_2": REFUSED, "-tls1_3": SERVED}),
        ("BOGUS", {"-tls1_2": REFUSED, "-tls1_3": REFUSED}),
    ],
)
def test_versions(
    program: Program, places: Places, tmp_path: Path, priority: str, expected: dict[str, str]
) -> None:
    more = f",verify-peer=off{f',priority={priority}' if priority else ''}"
    assert _versions(program, places, tmp_path, more, tuple(expected)) == expected


def test_old_versions_are_refused_whatever_the_priority_says(
    places: Places, tmp_path: Path
) -> None:
    more = ",verify-peer=off,priority=NORMAL:+VERS-TLS1.1:+VERS-TLS1.0"
    found = _versions(VHOSTBLK, places, tmp_path, more, ("-tls1_1", "-tls1", "-tls1_2"))
    assert found == {"-tls1_1": REFUSED, "-tls1": REFUSED, "-tls1_2": SERVED}


def _versions(
    program: Program, places: Places, tmp_path: Path, more: str, versions: Sequence[str]
) -> dict[str, str]:
    async def main() -> dict[str, str]:
        async with monitor(program, tmp_path / "log", [server(places, more=more)]) as (_, port):
            return {
                version: await program_outcome(
                    *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-quiet", version),
                    *("-cipher", "ALL:@SECLEVEL=0"),
                )
                for version in versions
            }

    return asyncio.run(main())


def test_credentials_are_renewed_while_connections_go_on(places: Places, tmp_path: Path) -> None:
    async def main() -> None:
        log = tmp_path / "log"
        objects = [server(places, more=",verify-peer=off")]
        async with monitor(VHOSTBLK, log, objects) as (session, port):
            context = client_context(places["good"])
            first = await connect(port, context)
            assert shown(first) == certificate(places["good"])
            assert await session.run("object-del", {"id": "creds"}) == {"return": {}}
            assert await first.execute("query-status") != {}
            await first.close()
            # Until there are new ones the device has those that it was made with.
            second = await connect(port, context)
            assert shown(second) == certificate(places["good"])
            renewed = {
                "qom-type": "tls-creds-x509",
                "id": "creds",
                "endpoint": "server",
                "dir": str(places["server-other-host"]),
                "verify-peer": False,
            }
            assert await session.run("object-add", renewed) == {"return": {}}
            assert (await second.execute("query-commands"))["return"]
            await second.close()
            third = await connect(port, context)
            assert shown(third) == certificate(places["server-other-host"])
            await third.close()
            # Others under the same id are not used.
            await session.run("object-del", {"id": "creds"})
            await session.run("object-add", {"qom-type": "iothread", "id": "creds"})
            assert await outcome(port, context) == REFUSED
            said = "Object with id 'creds' is not TLS credentials"
            await until(lambda: said in log.read_text())

    def shown(client: object) -> bytes:
        found = client.writer.get_extra_info("ssl_object")  # type: ignore[attr-defined]
        data = found.getpeercert(binary_form=True)
        assert isinstance(data, bytes)
        return data

    def certificate(directory: Path) -> bytes:
        return ssl.PEM_cert_to_DER_cert(
            "-----BEGIN" + (directory / "server-cert.pem").read_text().partition("-----BEGIN")[2]
        )

    asyncio.run(main())


def test_authorization_that_has_no_effect(places: Places, tmp_path: Path) -> None:
    log = tmp_path / "log"
    objects = [server(places, more=",verify-peer=off"), "authz-list,id=az"]
    options = "tls-creds=creds,tls-authz=az"
    assert outcomes(VHOSTBLK, log, places, ("",), objects, options) == {"": SERVED}
    assert log.read_text() == (
        "vhostblk: warning: chardev 'm': tls-authz has no effect, as the credentials 'creds' "
        "don't verify names\n"
    )

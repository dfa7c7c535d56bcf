# SPDX-License-Identifier: Apache-2.0
"""Sessions without I/O."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.tls.certificates import PSK
from tests.tls.sessions import Pair, anonymous, psk, update_keys, x509
from vhostblk.crypto import gnutls
from vhostblk.net.tls.errors import TlsError
from vhostblk.net.tls.session import TlsSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.tls.certificates import Places

TLS12 = "NORMAL:-VERS-ALL:+VERS-TLS1.2"
TLS13 = "NORMAL:-VERS-ALL:+VERS-TLS1.3"


def certificates(places: Places, client: str = "good", server: str = "good") -> Pair:
    return Pair(x509(places[client], server=False), x509(places[server], server=True))


KINDS: dict[str, Callable[[Places], Pair]] = {
    "x509": certificates,
    "tls1.2": lambda places: Pair(
        x509(places["good"], server=False, priority=TLS12), x509(places["good"], server=True)
    ),
    "psk": lambda places: Pair(psk(places["psk"], server=False), psk(places["psk"], server=True)),
    "anonymous": lambda places: Pair(anonymous(server=False), anonymous(server=True)),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_data_both_ways(places: Places, kind: str, chunk: int) -> None:
    pair = KINDS[kind](places)
    pair.shake_hands(chunk)
    assert pair.server.peer_name == ("CN=alice" if kind in ("x509", "tls1.2") else None)
    for data in (b"x", b"hello" * 1000, random.Random(1).randbytes(300_000)):
        for source, target in ((pair.client, pair.server), (pair.server, pair.client)):
            wire = source.encode(data)
            assert data not in wire or len(data) == 1
            step = max(chunk, len(wire) // 50)
            parts = [target.feed(wire[at : at + step]) for at in range(0, len(wire), step)]
            assert b"".join(parts) == data
    assert pair.client.feed(pair.server.finish()) == b""
    assert pair.client.ended
    pair.close()


@kinds
def test_data_right_behind_the_handshake(places: Places, kind: str) -> None:
    """It waits in the session until somebody asks for it, who has asked who the peer is."""
    pair = KINDS[kind](places)
    pair.client.feed(b"")
    wire = b""
    while not pair.server.established:
        wire += pair.client.encode(b"secret" if pair.client.established else b"")
        if pair.client.established and b"secret" and len(wire):
            assert pair.server.feed(wire) == b""
            break
        assert pair.server.feed(wire) == b""
        wire = b""
        pair.client.feed(pair.server.encode(b""))
    if not pair.server.established:  # the client was done first, and its data is there already
        raise AssertionError("the server has not finished")
    received = pair.server.feed(b"")
    if not received:  # the server was done first
        pair.client.feed(pair.server.encode(b""))
        received = pair.server.feed(pair.client.encode(b"secret"))
    assert received == b"secret"
    pair.close()


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        ("client-expired", "The certificate is not trusted"),
        ("client-not-yet", "The certificate is not trusted"),
        # GnuTLS's clients show no certificate that the server doesn't ask for.
        ("client-other-ca", "Verify failed: No certificate was found."),
        ("ca-only", "Verify failed: No certificate was found."),
    ],
)
def test_clients_that_are_refused(places: Places, client: str, reason: str) -> None:
    pair = certificates(places, client)
    with pytest.raises(TlsError) as caught:
        pair.shake_hands()
    assert str(caught.value) == reason
    if not pair.client.established:
        pair.client.feed(b"")
    with pytest.raises(TlsError, match="fatal alert"):
        pair.client.feed(pair.server.encode(b""))
    pair.close()


def test_a_client_that_is_revoked(places: Places) -> None:
    pair = certificates(places, server="revoked")
    with pytest.raises(TlsError) as caught:
        pair.shake_hands()
    assert str(caught.value) == "The certificate has been revoked"
    pair.close()


@pytest.mark.parametrize(
    ("server", "hostname", "reason"),
    [
        ("server-expired", "localhost", "The certificate is not trusted"),
        ("server-other-ca", "localhost", "The certificate hasn't got a known issuer"),
        ("server-other-host", "localhost", "Certificate does not match the hostname localhost"),
        ("good", "127.0.0.2", "Certificate does not match the hostname 127.0.0.2"),
        ("good", "local\0host", "Certificate does not match the hostname local\0host"),
        ("good", None, "No hostname for certificate validation"),
    ],
)
def test_servers_that_are_refused(
    places: Places, server: str, hostname: str | None, reason: str
) -> None:
    pair = Pair(
        x509(places["good"], server=False), x509(places[server], server=True), hostname=hostname
    )
    with pytest.raises(TlsError) as caught:
        pair.shake_hands()
    assert str(caught.value) == reason
    pair.close()


@pytest.mark.parametrize("hostname", ["localhost", "127.0.0.1", "::1"])
def test_names_of_a_server(places: Places, hostname: str) -> None:
    pair = Pair(
        x509(places["good"], server=False), x509(places["good"], server=True), hostname=hostname
    )
    pair.shake_hands()
    pair.close()


def test_verification_turned_off(places: Places) -> None:
    pair = Pair(
        x509(places["client-other-ca"], server=False, verify=False),
        x509(places["server-expired"], server=True, verify=False),
        hostname=None,
    )
    pair.shake_hands()
    assert pair.server.peer_name is None
    pair.close()


def test_keys_that_differ(places: Places) -> None:
    pair = Pair(psk(places["psk"], server=False, username="bob"), psk(places["psk"], server=True))
    pair.shake_hands()
    pair.close()
    own = places["psk"].parent / "psk-other"
    own.mkdir(exist_ok=True)
    for content in (f"qemu:{PSK[::-1]}\n", f"stranger:{PSK}\n"):
        (own / "keys.psk").write_text(content)
        name = content.partition(":")[0]
        pair = Pair(psk(own, server=False, username=name), psk(places["psk"], server=True))
        with pytest.raises(TlsError, match=r"^TLS handshake failed: "):
            pair.shake_hands()
        pair.close()


def test_keys_come_and_go(places: Places) -> None:
    own = places["psk"].parent / "psk-changing"
    own.mkdir(exist_ok=True)
    path = own / "keys.psk"
    path.write_text(f"qemu:{PSK}\n")
    client = psk(own, server=False)
    server = psk(own, server=True)
    Pair(client, server).shake_hands()
    path.write_text(f"other:{PSK}\n#716d:{PSK}\n")
    server.refresh()
    with pytest.raises(TlsError):
        Pair(client, server).shake_hands()
    path.write_text(f"#71656d75:{PSK} \r\n")  # "qemu" in hexadecimal digits
    server.refresh()
    Pair(client, server).shake_hands()


@pytest.mark.parametrize("priority", [TLS12, TLS13])
def test_versions(places: Places, priority: str) -> None:
    pair = Pair(
        x509(places["good"], server=False, priority=priority),
        x509(places["good"], server=True),
    )
    pair.shake_hands()
    pair.close()


def test_a_priority_of_old_versions(places: Places) -> None:
    """Those before TLS 1.2 are taken out; nothing is left here."""
    old = x509(places["good"], server=True, priority="NORMAL:-VERS-ALL:+VERS-TLS1.1")
    with pytest.raises(TlsError, match=r"No or insufficient priorities were set\.$"):
        TlsSession(old)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("x509", "Cannot set default TLS session priority BOGUS: The request is invalid."),
        ("anon", "Unable to set TLS session priority BOGUS:+ANON-DH: The request is invalid."),
    ],
)
def test_a_priority_that_makes_no_sense(places: Places, kind: str, reason: str) -> None:
    credentials = (
        x509(places["good"], server=True, priority="BOGUS")
        if kind == "x509"
        else type(anonymous(server=True))(
            anonymous(server=True).source, priority="BOGUS", verify_peer=True
        )
    )
    with pytest.raises(TlsError) as caught:
        TlsSession(credentials)
    assert str(caught.value) == reason


def test_keys_are_changed_while_data_flows(places: Places) -> None:
    """`qemu-project/qemu` issue 1937: there one thread reads while another writes."""
    pair = Pair(
        x509(places["good"], server=False, priority=TLS13), x509(places["good"], server=True)
    )
    pair.shake_hands()
    for number in range(4):  # the library takes eight a second from each side
        data = bytes([number]) * 20_000
        update_keys(pair.server if number % 2 else pair.client)
        for _ in range(2):  # until the answer is back
            assert pair.server.feed(pair.client.encode(data)) == data
            assert pair.client.feed(pair.server.encode(data)) == data
    pair.close()


def test_a_peer_that_changes_keys_all_the_time(places: Places) -> None:
    pair = Pair(
        x509(places["good"], server=False, priority=TLS13), x509(places["good"], server=True)
    )
    pair.shake_hands()
    wire = b""
    for _ in range(1000):
        update_keys(pair.client)
        wire += pair.client.encode(b"")
    with pytest.raises(TlsError, match=r"[Tt]oo many"):
        pair.server.feed(wire)
    assert len(pair.server.encode(b"")) < 10_000
    pair.close()


@pytest.mark.parametrize("priority", [TLS12, TLS13])
def test_an_alert_in_mid_stream(places: Places, priority: str) -> None:
    pair = Pair(
        x509(places["good"], server=False, priority=priority), x509(places["good"], server=True)
    )
    pair.shake_hands()
    before = pair.client.encode(b"before")
    pair.client.refuse(gnutls.ALERT_ACCESS_DENIED)
    alert = pair.client.encode(b"")
    assert pair.server.feed(before + alert) == b"before"
    assert pair.server.ended
    pair.close()


def test_renegotiation_is_refused(places: Places) -> None:
    pair = Pair(
        x509(places["good"], server=False, priority=TLS12), x509(places["good"], server=True)
    )
    pair.shake_hands()
    library = gnutls.library()
    code = library.lib.gnutls_handshake(pair.client._session)
    assert code == gnutls.E_AGAIN
    with pytest.raises(TlsError, match="Rehandshake was requested"):
        pair.server.feed(pair.client.encode(b""))
    pair.close()


@pytest.mark.parametrize("established", [True, False])
def test_anything_at_all(places: Places, established: bool) -> None:
    """Garbage ends the session with an error, or waits for more; it never does anything else."""
    random_ = random.Random(7)
    for number in range(300):
        pair = certificates(places)
        if established and number < 60:
            pair.shake_hands()
            wire = bytearray(pair.client.encode(b"some data"))
        else:
            pair.client.feed(b"")
            wire = bytearray(pair.client.encode(b""))
        for _ in range(random_.randrange(1, 4)):
            place = random_.randrange(len(wire))
            wire[place : place + random_.randrange(3)] = random_.randbytes(random_.randrange(3))
        with suppress(TlsError):
            assert pair.server.feed(bytes(wire)) in (b"", b"some data")
        assert len(pair.server.encode(b"")) < 10_000
        pair.close()


def test_credentials_outlive_their_object(places: Places) -> None:
    pair = certificates(places)
    pair.client.credentials = pair.server.credentials = None  # type: ignore[assignment]
    # The transport still has them.
    pair.client.credentials = pair.client._transport.credentials
    pair.server.credentials = pair.server._transport.credentials
    pair.shake_hands()
    pair.close()
    pair.close()

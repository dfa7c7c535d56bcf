# SPDX-License-Identifier: Apache-2.0
"""Credentials in all states: vhostblk takes and refuses what QEMU does, in the same words."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.qmp_exports.daemons import QEMU_10, VHOSTBLK, running
from tests.tls.certificates import PASSWORD

if TYPE_CHECKING:
    from pathlib import Path

    from tests.qmp_exports.daemons import Program
    from tests.tls.certificates import Places

Step = tuple[str, dict[str, Any] | None]


def answers(program: Program, steps: list[Step], log: Path) -> list[dict[str, Any]]:
    async def main() -> list[dict[str, Any]]:
        async with running(program, log) as session:
            return [await session.run(*step) for step in steps]

    return asyncio.run(main())


def compare(steps: list[Step], directory: Path) -> list[dict[str, Any]]:
    """Run steps on both daemons; return the answers, which are the same."""
    ours = answers(VHOSTBLK, steps, directory / "ours")
    theirs = answers(QEMU_10, steps, directory / "theirs")
    for step, our, their in zip(steps, ours, theirs, strict=True):
        assert our == their, step
    return ours


class Objects:
    """Steps that make objects, each with an id of its own."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def add(self, kind: str, **options: object) -> None:
        named = {name.replace("_", "-"): value for name, value in options.items()}
        named = {"qom-type": kind, "id": f"o{len(self.steps)}", **named}
        self.steps.append(("object-add", named))


def test_certificates(places: Places, tmp_path: Path) -> None:
    made = Objects()
    for name in places.names:
        for endpoint in ("server", "client"):
            for check in (True, False):
                made.add(
                    "tls-creds-x509",
                    dir=str(places[name]),
                    endpoint=endpoint,
                    **({} if check else {"sanity_check": False}),
                )
    found = compare(made.steps, tmp_path)
    assert sum("return" in answer for answer in found) > 50
    assert len({answer["desc"] for answer in found if "desc" in answer}) > 40


def test_options_of_certificates(places: Places, tmp_path: Path) -> None:
    made = Objects()
    good, encrypted = str(places["good"]), str(places["encrypted"])
    made.add("tls-creds-x509")
    made.add("tls-creds-x509", endpoint="server")
    made.add("tls-creds-x509", dir="/no/directory")
    made.add("tls-creds-x509", dir=good, endpoint="both")
    made.add("tls-creds-x509", dir=good, endpoint="server", priority="BOGUS")
    made.add("secret", id="right", data=PASSWORD)
    made.add("secret", id="wrong", data="x")
    made.add("secret", id="binary", data="/w==", format="base64")
    for password in ("right", "wrong", "binary", "none"):
        for directory in (encrypted, good):
            made.add("tls-creds-x509", dir=directory, endpoint="server", passwordid=password)
    made.add("tls-creds-x509", id="g", dir=good, endpoint="server")
    properties = ("dir", "endpoint", "verify-peer", "priority", "sanity-check", "passwordid")
    made.steps += [("qom-get", {"path": "/objects/g", "property": name}) for name in properties]
    for kind in ("tls-creds-x509", "tls-creds-psk", "tls-creds-anon"):
        made.steps.append(("qom-list-properties", {"typename": kind}))
    made.steps += [("object-del", {"id": "g"}), ("object-del", {"id": "g"})]
    compare(made.steps, tmp_path)


def test_keys_and_no_proof(places: Places, tmp_path: Path) -> None:
    made = Objects()
    psk, good = str(places["psk"]), str(places["good"])
    for name in (None, "bob", "bo", "nothing", "zz", "odd", "empty", "space", "none", ""):
        given = {} if name is None else {"username": name}
        made.add("tls-creds-psk", dir=psk, endpoint="client", **given)
    made.add("tls-creds-psk", dir=psk, endpoint="server")
    made.add("tls-creds-psk", dir=psk, endpoint="server", username="qemu")
    for directory in (good, "/no/directory"):
        for endpoint in ("server", "client"):
            made.add("tls-creds-psk", dir=directory, endpoint=endpoint)
            made.add("tls-creds-anon", dir=directory, endpoint=endpoint)
    for kind in ("tls-creds-psk", "tls-creds-anon"):
        for endpoint in ("server", "client"):
            made.add(kind, endpoint=endpoint)
            for name in ("text-dh-params", "directory-dh-params"):
                made.add(kind, dir=str(places[name]), endpoint=endpoint)
    compare(made.steps, tmp_path)


def test_what_a_socket_may_use(places: Places, tmp_path: Path) -> None:
    made = Objects()
    made.add("tls-creds-x509", id="server", dir=str(places["good"]), endpoint="server")
    made.add("tls-creds-x509", id="client", dir=str(places["good"]), endpoint="client")
    made.add("secret", id="secret", data="x")
    inet = {"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}}
    unix = {"type": "unix", "data": {"path": str(tmp_path / "socket")}}
    vsock = {"type": "vsock", "data": {"cid": "1", "port": "1"}}
    for addr, options in (
        (inet, {"tls-creds": "none"}),
        (inet, {"tls-creds": "secret"}),
        (inet, {"tls-creds": "client"}),
        (inet, {"tls-creds": "server", "server": False}),
        (inet, {"tls-authz": "a"}),
        (unix, {"tls-creds": "server"}),
        (unix, {"tls-creds": "client"}),
        (unix, {"tls-creds": "client", "server": False}),
        (unix, {"tls-creds": "none"}),
        (vsock, {"tls-creds": "server"}),
        (vsock, {"tls-creds": "client", "server": False}),
        (inet, {"websocket": True, "server": False}),
    ):
        data = {"addr": addr, **options}
        backend = {"type": "socket", "data": data}
        made.steps.append(("chardev-add", {"id": "c", "backend": backend}))
    found = compare(made.steps, tmp_path)
    assert all("desc" in answer for answer in found[3:])


def test_cipher_suites(tmp_path: Path) -> None:
    """QEMU's storage daemon is built without this object: the message is its emulator's."""
    made = Objects()
    made.add("tls-cipher-suites")
    made.add("tls-cipher-suites", id="t", priority="@SYSTEM")
    made.steps.append(("qom-get", {"path": "/objects/t", "property": "priority"}))
    assert answers(VHOSTBLK, made.steps, tmp_path / "log") == [
        {"class": "GenericError", "desc": "'priority' property is not set"},
        {"return": {}},
        {"return": "@SYSTEM"},
    ]


@pytest.mark.parametrize("name", ["server-key.pem", "keys.psk"])
def test_keys_that_others_may_read(places: Places, tmp_path: Path, name: str) -> None:
    kind, source = ("x509", "good") if name.endswith("pem") else ("psk", "psk")
    for path in places[source].iterdir():
        target = tmp_path / path.name
        target.write_bytes(path.read_bytes())
        target.chmod(0o600)
    (tmp_path / name).chmod(0o644)
    made = Objects()
    made.add(f"tls-creds-{kind}", dir=str(tmp_path), endpoint="server")
    log = tmp_path / "log"
    assert answers(VHOSTBLK, made.steps, log) == [{"return": {}}]
    assert log.read_text() == (
        f"vhostblk: warning: {tmp_path}/{name}: other users can read this secret file\n"
    )

# SPDX-License-Identifier: Apache-2.0
"""Secrets as objects: what is kept, handed over, shown, and read while others are served."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.objects.keyring import kernel_key
from tests.qmp_exports.daemons import QEMU_10, VHOSTBLK, running
from tests.qmp_exports.direct import execute, refusal
from vhostblk import Daemon
from vhostblk.crypto.errors import SecretError
from vhostblk.handover import configuration

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.qmp_exports.daemons import Program


def run(test: Callable[[Daemon], Awaitable[None]], *objects: str) -> None:
    async def main() -> None:
        async with Daemon(objects=objects) as daemon:
            await test(daemon)

    asyncio.run(main())


def value(daemon: Daemon, object_id: str) -> bytes:
    with daemon.keys.secret(object_id) as secret, secret.view as view:
        return bytes(view)


def test_sources(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"from \xff a file\n")
    path.chmod(0o600)

    async def test(daemon: Daemon) -> None:
        assert value(daemon, "a") == b"literal"
        assert value(daemon, "b") == b"from \xff a file\n"
        assert value(daemon, "c") == b"abc"
        with pytest.raises(SecretError, match=r"^Data from secret b is not valid UTF-8$"):
            daemon.keys.text_secret("b")
        with daemon.keys.text_secret("a") as text, text.terminated as view:
            assert bytes(view) == b"literal\0"
        with pytest.raises(SecretError, match=r"^No secret with id 'd'$"):
            daemon.keys.secret("d")
        with pytest.raises(SecretError, match=r"^Object with id 'io' is not a secret$"):
            daemon.keys.secret("io")

    run(
        test,
        "secret,id=a,data=literal",
        f"secret,id=b,file={path}",
        "secret,id=c,data=YWJj,format=base64",
        "iothread,id=io",
    )


def test_options_do_not_keep_the_literal_secret() -> None:
    async def test(daemon: Daemon) -> None:
        assert "literal" not in repr(daemon.objects["a"].options)
        at = {"path": "/objects/a", "property": "data"}
        assert await refusal(daemon, "qom-get", at) == (
            "GenericError",
            "Property 'secret.data' is not readable",
        )

    run(test, "secret,id=a,data=literal")


def test_another_process_gets_the_value(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\0from a file")
    path.chmod(0o600)

    async def test(daemon: Daemon) -> None:
        await execute(daemon, "object-del", {"id": "k"})
        path.unlink()
        async with Daemon(objects=configuration.objects(daemon)) as other:
            assert value(other, "f") == b"\0from a file"
            assert value(other, "e") == b"letmein"

    run(
        test,
        f"secret,id=k,data={'k' * 32}",
        f"secret,id=f,file={path}",
        "secret,id=e,data=el5Ej1ROV0Rd+o5FvQy/Zg==,format=base64,keyid=k,iv=aWlpaWlpaWlpaWlpaWlpaQ==",
    )


def test_a_copy_outlives_the_object() -> None:
    async def test(daemon: Daemon) -> None:
        copy = daemon.keys.secret("a")
        held = daemon.objects["a"]
        await execute(daemon, "object-del", {"id": "a"})
        with copy, copy.view as view:
            assert bytes(view) == b"literal"
        with pytest.raises(AssertionError):
            _ = held.offer.view  # type: ignore[attr-defined]

    run(test, "secret,id=a,data=literal")


def test_the_daemon_goes_on_while_a_file_is_read(tmp_path: Path) -> None:
    """A pipe that nobody has written into yet holds up neither others nor another use of the id."""
    path = tmp_path / "pipe"
    os.mkfifo(path)

    async def test(daemon: Daemon) -> None:
        options = {"qom-type": "secret", "id": "p", "file": str(path)}
        adding = asyncio.create_task(execute(daemon, "object-add", options))
        await asyncio.sleep(0)  # it has begun
        assert (await refusal(daemon, "object-add", options))[1].startswith("attempt to add dup")
        assert await execute(daemon, "qom-get", {"path": "/", "property": "objects"}) == "/objects"
        await asyncio.to_thread(path.write_bytes, b"late")
        await adding
        assert value(daemon, "p") == b"late"

    run(test)


def test_the_keyring_as_in_qemu(tmp_path: Path) -> None:
    payload = b"kept by the kernel"

    async def answers(program: Program, serial: int) -> list[dict[str, Any]]:
        async with running(program, tmp_path / program.name) as session:
            found = []
            for number in (serial, 0x7FFFFFFF):
                options = {"qom-type": "secret_keyring", "id": f"k{number}", "serial": number}
                found.append(await session.run("object-add", options))
            return found

    async def test(daemon: Daemon) -> None:
        assert value(daemon, "k") == payload

    with kernel_key(payload) as serial:
        ours = asyncio.run(answers(VHOSTBLK, serial))
        theirs = asyncio.run(answers(QEMU_10, serial))
        run(test, f"secret_keyring,id=k,serial={serial}")
    assert ours == theirs
    assert ours[0] == {"return": {}}
    assert ours[1]["desc"] == "Unable to read serial key 7fffffff: Required key not available"

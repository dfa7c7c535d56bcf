# SPDX-License-Identifier: Apache-2.0
"""In the sandbox, as another user: what objects name can be read again, and nothing else."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.chardev.support import until
from tests.cli.process import running, wait_until
from tests.objects.keyring import kernel_key
from tests.qmp_exports.daemons import VHOSTBLK
from tests.sandbox.test_denials import needs_landlock
from tests.tls.certificates import PSK
from tests.tls.monitors import REFUSED, SERVED, client_context, monitor, outcome, program_outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.tls.certificates import Places

ANOTHER = ("--run-as", "12345:23456") if os.geteuid() == 0 else ()
DENY = ("--sandbox", "files=deny")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that another user can read; pytest's own are private."""
    directory = Path(tempfile.mkdtemp(prefix="vhostblk-tls-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def copy(source: Path, target: Path) -> Path:
    """Copy credentials so that the other user can read them."""
    shutil.copytree(source, target)
    target.chmod(0o755)
    for path in target.iterdir():
        path.chmod(0o640)
        if os.geteuid() == 0:
            os.chown(path, 0, 23456)
    return target


def user(pid: int) -> str:
    """Return the user that a process is."""
    return Path(f"/proc/{pid}/status").read_text().partition("Uid:")[2].split()[0]


@needs_landlock
def test_certificates_and_lists_are_read_again(
    places: Places, open_directory: Path, tmp_path: Path
) -> None:
    own = copy(places["good"], open_directory / "own")
    other = copy(places["good"], open_directory / "other")
    rules = open_directory / "rules"
    rules.mkdir()
    rules.chmod(0o755)
    (rules / "list").write_text('{"policy": "deny"}')

    async def main() -> None:
        objects = [
            f"tls-creds-x509,id=creds,endpoint=server,dir={own}",
            f"authz-list-file,id=az,filename={rules}/list",
        ]
        options = "tls-creds=creds,tls-authz=az"
        async with monitor(VHOSTBLK, tmp_path / "log", objects, options, (*ANOTHER, *DENY)) as (
            session,
            port,
        ):
            if ANOTHER:
                assert user(session.process.pid) == "12345"
            context = client_context(places["good"])
            assert await outcome(port, context) == REFUSED
            (rules / "new").write_text('{"policy": "allow"}')
            (rules / "new").rename(rules / "list")
            assert await outcome(port, context) == SERVED
            again = {"qom-type": "tls-creds-x509", "endpoint": "server"}
            await session.run("object-del", {"id": "creds"})
            answer = await session.run("object-add", {**again, "id": "creds", "dir": str(own)})
            assert answer == {"return": {}}
            assert await outcome(port, context) == SERVED
            answer = await session.run("object-add", {**again, "id": "x", "dir": str(other)})
            assert answer["desc"].endswith(": Permission denied")
            secret = {"qom-type": "secret", "id": "s", "file": f"{other}/server-key.pem"}
            answer = await session.run("object-add", secret)
            assert answer["desc"].endswith(": Permission denied")

    asyncio.run(main())


@needs_landlock
def test_keys_are_read_again(places: Places, open_directory: Path, tmp_path: Path) -> None:
    own = copy(places["psk"], open_directory / "own")

    async def main() -> None:
        objects = [f"tls-creds-psk,id=creds,endpoint=server,dir={own}"]
        async with monitor(VHOSTBLK, tmp_path / "log", objects, more=(*ANOTHER, *DENY)) as (
            _,
            port,
        ):
            words = ("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-quiet")
            later = (*words, "-psk_identity", "later", "-psk", PSK)
            assert await program_outcome(*later) == REFUSED
            (own / "keys.psk").write_text(f"later:{PSK}\n")
            assert await program_outcome(*later) == SERVED

    asyncio.run(main())


@needs_landlock
def test_pam_is_asked(places: Places, open_directory: Path, tmp_path: Path) -> None:
    service = open_directory / "pam.d"
    service.mkdir()
    service.chmod(0o755)
    (open_directory / "users").write_text("CN=alice\n")
    (service / "vhostblk").write_text(
        "account required pam_listfile.so item=user sense=allow onerr=fail "
        f"file={open_directory}/users\n"
    )
    own = copy(places["good"], open_directory / "own")
    name_space = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    command = f'mount --bind {service} /etc/pam.d && exec "$@"'

    async def main() -> None:
        program = type(VHOSTBLK)(
            "vhostblk",
            0,
            (*name_space, "sh", "-c", command, "sh", *VHOSTBLK.command),
        )
        objects = [
            f"tls-creds-x509,id=creds,endpoint=server,dir={own}",
            "authz-pam,id=az,service=vhostblk",
        ]
        sandbox = ("--sandbox", f"files=deny,directory={open_directory}")
        async with monitor(
            program, tmp_path / "log", objects, "tls-creds=creds,tls-authz=az", sandbox
        ) as (_, port):
            context = client_context(places["good"])
            assert await outcome(port, context) == SERVED
            (open_directory / "users").write_text("CN=bob\n")
            assert await outcome(port, context) == REFUSED
            said = "Unable to authorize user 'CN=alice'"
            await until(lambda: said in (tmp_path / "log").read_text())

    asyncio.run(main())


def test_the_keyring_is_read_in_the_sandbox(tmp_path: Path) -> None:
    """Where a monitor may ask for it, or as here the command line does."""
    with kernel_key(b"a key") as serial:
        options = ("--object", f"secret_keyring,id=k,serial={serial}", "--pidfile", "pid")
        with running(*options, "--sandbox", "on", cwd=tmp_path) as daemon:
            wait_until((tmp_path / "pid").exists, daemon)

# SPDX-License-Identifier: Apache-2.0
"""Secrets are in no log, at no level, and in no memory once their objects are gone."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import secrets
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.process import refusal
from tests.qmp_exports.daemons import VHOSTBLK, running

if TYPE_CHECKING:
    from tests.qmp_exports.daemons import Session

#: Appears nowhere else.
SECRET = "hunter2-hunter3"


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        (f"secret,id=s,data={SECRET},bogus=1", "secret,id=s,data=...,...=..."),
        (f"secret,id=s,dta={SECRET}", "secret,id=s,...=..."),
        (f"secret,id=s,data=a,,{SECRET},file=x", "secret,id=s,data=...,file=x"),
        (f"secret,data={SECRET},id=1", "secret,data=...,id=1"),
        (f"qom-type=secret,id=s,data={SECRET},format=hex", None),
        (f'{{"qom-type": "secret", "id": "s", "data": "{SECRET}", "x": 1}}', None),
        (f'{{"qom-type": "secret", "id": "s", "data": "{SECRET}\\"", "x": 1}}', None),
    ],
)
def test_what_the_command_line_says(tmp_path: Path, option: str, shown: str | None) -> None:
    said = refusal("--object", option, cwd=tmp_path)
    assert "hunter" not in said
    assert said.startswith(f"--object {shown or ''}"), said


def test_no_log_has_it_at_any_level(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def main() -> None:
        options = ("-T", "*", "--object", f"secret,id=first,data={SECRET}")
        async with running(VHOSTBLK, log, options) as session:
            for arguments in (
                {"qom-type": "secret", "id": "a", "data": SECRET},
                {"qom-type": "secret", "id": "a", "data": SECRET},
                {"qom-type": "secret", "id": "b", "dta": SECRET},
                {"qom-type": "secret", "id": "b", "data": [SECRET]},
                {"qom-type": "secret", "id": "b", "data": SECRET + "!", "format": "base64"},
                {"qom-type": "secret", "id": "b", "data": SECRET, "keyid": "a"},
                {"qom-type": "secrets", "id": "b", "data": SECRET},
            ):
                await session.run("object-add", arguments)
            at = {"path": "/objects/a", "property": "data"}
            await session.run("qom-set", {**at, "value": SECRET})
            await session.run("qom-get", at)
            await session.run("object-del", {"id": "a"})

    asyncio.run(main())
    text = log.read_text()
    assert "qmp_enter_object_add" in text
    assert "handle_qmp_command" in text
    assert "hunter" not in text


def in_memory(pid: int, needle: bytes) -> list[str]:
    """Return the mappings of a process that have these bytes."""
    found = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if match is None or line.endswith("[vvar]") or "[vvar" in line:
                continue
            start, end = int(match[1], 16), int(match[2], 16)
            try:
                memory.seek(start)
                data = memory.read(end - start)
            except (OSError, ValueError, OverflowError):
                continue
            if needle in data:
                found.append(line)
    return found


def encrypt(data: bytes, key: bytes, iv: bytes) -> bytes:
    words = ["openssl", "enc", "-aes-256-cbc", "-K", key.hex(), "-iv", iv.hex()]
    return subprocess.run(words, input=data, stdout=subprocess.PIPE, check=True).stdout


async def _objects_leave_nothing(session: Session, directory: Path) -> None:
    pid = session.process.pid
    plain, sealed, key, encoded = (secrets.token_bytes(48) for _ in range(4))
    key = key[:32]
    iv = secrets.token_bytes(16)
    encrypted = encrypt(sealed, key, iv)
    for name, content in (
        ("plain", plain),
        ("key", key),
        ("sealed", encrypted),
        ("encoded", base64.b64encode(encoded)),
    ):
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o600)
        options: dict[str, str] = {"qom-type": "secret", "id": name, "file": f"{directory}/{name}"}
        if name == "sealed":
            options |= {"keyid": "key", "iv": base64.b64encode(iv).decode()}
        if name == "encoded":
            options |= {"format": "base64"}
        assert await session.run("object-add", options) == {"return": {}}
    for value in (plain, sealed, key, encoded):
        assert len(in_memory(pid, value)) == 1
    for name in ("sealed", "plain", "key", "encoded"):
        await session.run("object-del", {"id": name})
    for value in (plain, sealed, key, encoded):
        assert in_memory(pid, value) == []
        assert in_memory(pid, base64.b64encode(value)) == []


def test_nothing_is_left_in_memory(tmp_path: Path) -> None:
    assert in_memory(os.getpid(), SECRET.encode())  # it finds what is there

    async def main() -> None:
        async with running(VHOSTBLK, tmp_path / "log") as session:
            await _objects_leave_nothing(session, tmp_path)

    asyncio.run(main())

# SPDX-License-Identifier: Apache-2.0
"""Who is allowed, by all kinds of authorization objects."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.process import ROOT, environment
from tests.qmp_exports.direct import execute, refusal
from vhostblk import Daemon
from vhostblk.errors import VhostblkError
from vhostblk.net.authorization import is_allowed
from vhostblk.objects.authz_rules import glob_matches

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


def run(test: Callable[[Daemon], Awaitable[None]], *objects: str) -> None:
    async def main() -> None:
        async with Daemon(objects=objects) as daemon:
            await test(daemon)

    asyncio.run(main())


async def allowed(daemon: Daemon, authz_id: str, *names: str) -> list[bool]:
    return [await is_allowed(daemon.keys, authz_id, name) for name in names]


def test_one_name() -> None:
    async def test(daemon: Daemon) -> None:
        assert await allowed(daemon, "a", "CN=x", "CN=X", "CN=xy", "") == [
            True,
            False,
            False,
            False,
        ]
        change = {"path": "/objects/a", "property": "identity", "value": "CN=y"}
        await execute(daemon, "qom-set", change)
        assert await allowed(daemon, "a", "CN=x", "CN=y") == [False, True]

    run(test, "authz-simple,id=a,identity=CN=x")


def test_the_first_rule_that_fits() -> None:
    async def test(daemon: Daemon) -> None:
        names = ("CN=alice", "CN=bob", "CN=carol", "*=x", "O=x")
        assert await allowed(daemon, "l", *names) == [True, False, True, False, False]
        change = {"path": "/objects/l", "property": "policy", "value": "allow"}
        await execute(daemon, "qom-set", change)
        assert await allowed(daemon, "l", *names) == [True, False, True, False, True]
        rules = {"path": "/objects/l", "property": "rules", "value": [{"match": "CN=bob"}]}
        assert (await refusal(daemon, "qom-set", rules))[1] == (
            "Parameter 'rules[0].policy' is missing"
        )
        assert await allowed(daemon, "l", *names) == [True, False, True, False, True]

    run(
        test,
        "authz-list,id=l,policy=deny,"
        "rules.0.match=CN=bob,rules.0.policy=deny,"
        "rules.1.match=CN=*,rules.1.format=glob,rules.1.policy=allow,"
        "rules.2.match=*=x,rules.2.policy=deny",
    )


def test_who_is_asked() -> None:
    async def test(daemon: Daemon) -> None:
        with pytest.raises(VhostblkError, match=r"^Cannot find QAuthZ object ID none$"):
            await is_allowed(daemon.keys, "none", "x")
        with pytest.raises(VhostblkError, match=r"^Object 'io' is not a QAuthZ subclass$"):
            await is_allowed(daemon.keys, "io", "x")

    run(test, "iothread,id=io")


ALICE = '{"rules": [{"match": "alice", "policy": "allow"}]}'
BOB = '{"rules": [{"match": "bob", "policy": "allow"}]}'


@pytest.mark.parametrize("kind", ["authz-list-file", "authz-listfile"])
def test_a_file_that_is_replaced(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "list.json"
    path.write_text(ALICE)

    async def test(daemon: Daemon) -> None:
        assert await allowed(daemon, "f", "alice", "bob") == [True, False]
        other = tmp_path / "new"
        other.write_text(BOB)
        other.rename(path)
        assert await allowed(daemon, "f", "alice", "bob") == [False, True]
        path.write_text(ALICE)
        assert await allowed(daemon, "f", "alice", "bob") == [True, False]
        target = tmp_path / "target"
        target.write_text(BOB)
        path.unlink()
        assert await allowed(daemon, "f", "alice", "bob") == [True, False]
        path.symlink_to(target)
        assert await allowed(daemon, "f", "alice", "bob") == [False, True]
        assert not caplog.records
        target.write_text(BOB[:-1])
        assert await allowed(daemon, "f", "alice", "bob") == [False, False]
        (record,) = caplog.records
        assert (
            record.getMessage()
            == (
                f"authorization 'f' allows nobody: File '{path}': JSON parse error, expecting value"
            )
            or "allows nobody" in record.getMessage()
        )
        target.write_text(ALICE)
        assert await allowed(daemon, "f", "alice", "bob") == [True, False]
        shown = await execute(daemon, "qom-get", {"path": "/objects/f", "property": "filename"})
        assert shown == str(path)

    run(test, f"{kind},id=f,filename={path}")


def test_a_file_that_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(ALICE)

    async def test(daemon: Daemon) -> None:
        path.write_text(BOB)
        assert await allowed(daemon, "f", "alice", "bob") == [True, False]

    run(test, f"authz-list-file,id=f,filename={path},refresh=off")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "File '{path}': Expecting a JSON value"),
        ("[]", "File '{path}': it must contain a JSON object"),
        ("{} {}", "File '{path}': Expecting at most one JSON value"),
        ('{"polcy": "deny"}', "File '{path}': Parameter 'polcy' is unexpected"),
        ('{"policy": "maybe"}', "File '{path}': Parameter 'policy' does not accept value 'maybe'"),
        ('{"rules": [{"policy": "deny"}]}', "File '{path}': Parameter 'rules[0].match' is missing"),
        ("[" * 100_000, "File '{path}': .*"),
    ],
)
def test_files_that_make_no_sense(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(content)

    async def test(daemon: Daemon) -> None:
        options = {"qom-type": "authz-list-file", "id": "f", "filename": str(path)}
        _, said = await refusal(daemon, "object-add", options)
        pattern = re.escape(reason).replace(re.escape("{path}"), re.escape(str(path)))
        assert re.fullmatch(pattern.replace(r"\.\*", ".*"), said), said
        assert not daemon.objects

    run(test)


def test_a_file_that_is_not_there() -> None:
    async def test(daemon: Daemon) -> None:
        options = {"qom-type": "authz-list-file", "id": "f", "filename": "/no/list"}
        assert (await refusal(daemon, "object-add", options))[1] == (
            "Unable to read '/no/list': Failed to open file “/no/list”: No such file or directory"
        )

    run(test)


@given(st.text("ab*?", max_size=8), st.text("ab", max_size=8))
def test_patterns(pattern: str, text: str) -> None:
    expression = "".join({"*": ".*", "?": "."}.get(character, character) for character in pattern)
    assert glob_matches(pattern, text) == bool(re.fullmatch(expression, text))


def test_a_pattern_that_would_take_for_ever() -> None:
    assert not glob_matches("*a" * 2000 + "b", "a" * 4000)


def test_rules_of_pam(tmp_path: Path) -> None:
    """PAM's own library and modules, with a service of our own, in a name space of its own."""
    service = tmp_path / "pam.d"
    service.mkdir()
    users = tmp_path / "users"
    users.write_text("alice\n")
    (service / "vhostblk-test").write_text(
        f"account required pam_listfile.so item=user sense=allow onerr=fail file={users}\n"
    )
    (service / "vhostblk-deny").write_text("account required pam_deny.so\n")
    program = f"mount --bind {service} /etc/pam.d && exec {sys.executable} -m tests.objects.pam"
    name_space = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    done = subprocess.run(
        [*name_space, "sh", "-c", program],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "vhostblk-test alice: allowed",
        "vhostblk-test bob: Unable to authorize user 'bob': Authentication failure",
        "vhostblk-deny alice: Unable to authorize user 'alice': Authentication failure",
        "vhostblk-deny bob: Unable to authorize user 'bob': Authentication failure",
        "no-such-service alice: Unable to start PAM transaction: Critical error - immediate abort",
        "no-such-service bob: Unable to start PAM transaction: Critical error - immediate abort",
    ]

# SPDX-License-Identifier: Apache-2.0
"""A new process takes over a monitor on TLS, with the credentials, rules and secrets."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from tests.chardev.support import until
from tests.qmp_exports.daemons import VHOSTBLK, running
from tests.tls.certificates import PASSWORD
from tests.tls.monitors import REFUSED, SERVED, client_context, outcome

if TYPE_CHECKING:
    from pathlib import Path

    from tests.tls.certificates import Places


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_monitor_on_tls(places: Places, tmp_path: Path) -> None:
    port = free_port()
    path = tmp_path / "handover"
    own = tmp_path / "own"
    own.mkdir()
    for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem", "dh-params.pem"):
        (own / name).write_bytes((places["encrypted"] / name).read_bytes())
    (own / "server-key.pem").chmod(0o600)
    objects = (
        *("--object", f"secret,id=password,data={PASSWORD}"),
        *("--object", f"tls-creds-x509,id=creds,endpoint=server,dir={own},passwordid=password"),
        *("--object", "authz-list,id=az,rules.0.match=CN=alice,rules.0.policy=allow"),
    )
    options = "server=on,wait=off,tls-creds=creds,tls-authz=az"
    monitor = ("--chardev", f"socket,id=m,host=127.0.0.1,port={port},{options}", "--monitor", "m")
    handover = ("--handover", str(path))

    async def main() -> None:
        context = client_context(places["good"])
        logs = tmp_path / "first", tmp_path / "second"
        async with running(VHOSTBLK, logs[0], (*objects, *monitor, *handover)) as first:
            await until(path.exists)
            assert await outcome(port, context) == SERVED
            words = (*objects, *monitor, "--takeover", str(path), *handover)
            async with running(VHOSTBLK, logs[1], words) as second:
                await until(lambda: first.process.poll() is not None)
                assert await outcome(port, context) == SERVED
                assert await outcome(port, client_context(None)) == REFUSED
                await until(lambda: "Verify failed" in logs[1].read_text())
                listed = await second.run("qom-list", {"path": "/objects"})
                names = [each["name"] for each in listed["return"]]
                assert names == ["type", "password", "creds", "az"]
        # Nothing is different, and no secret is shown.
        assert logs[0].read_text() == ""
        assert logs[1].read_text() == (
            "vhostblk: chardev 'm': Verify failed: No certificate was found.\n"
        )

    asyncio.run(main())

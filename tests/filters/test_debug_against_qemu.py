# SPDX-License-Identifier: Apache-2.0
"""Drivers for testing: the same outcomes as those of QEMU's storage daemon."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.filters import debug_cases, log_cases, quorum_cases
from tests.filters.harness import Case, Step, add, check, file
from tests.filters.nbd import NbdClient
from tests.qmp_exports.daemons import QEMU_10, running

if TYPE_CHECKING:
    from pathlib import Path

CASES = [*debug_cases.CASES, *log_cases.CASES, *quorum_cases.CASES]

pytestmark = pytest.mark.skipif(not QEMU_10.available, reason="qemu-storage-daemon 10 missing")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_outcomes_are_the_same(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            add(driver="blkverify", node_name="v", raw="a", test="b"),
            "blkverify: read offset=512 bytes=1024 contents mismatch at offset 1000",
        ),
        (
            add(
                driver="quorum",
                node_name="v",
                children=["a", "b"],
                vote_threshold=2,
                blkverify=True,
            ),
            "quorum: offset=512 bytes=1024 contents mismatch at offset 1000",
        ),
    ],
    ids=["blkverify", "quorum"],
)
def test_qemu_ends_like_us(node: Step, message: str, tmp_path: Path) -> None:
    """The other half of `tests.block.test_quorum.test_a_mismatch_ends_the_process`."""
    (tmp_path / "a").write_bytes(bytes(4096))
    (tmp_path / "b").write_bytes(bytes(1000) + b"x" + bytes(3095))
    socket_path, log = tmp_path / "nbd.sock", tmp_path / "log"

    async def main() -> int:
        server = ["--nbd-server", f"addr.type=unix,addr.path={socket_path}"]
        async with running(QEMU_10, log, server) as session:
            for name in "ab":
                step = add(**file(name, name, filename=str(tmp_path / name)))
                assert await session.run(step.what, step.arguments) == {"return": {}}
            assert await session.run(node.what, node.arguments) == {"return": {}}
            export = {"type": "nbd", "id": "e", "node-name": "v", "name": "e"}
            assert await session.run("block-export-add", export) == {"return": {}}
            client = NbdClient(socket_path, "e")
            assert client.read(0, 512) == bytes(512)
            with suppress(OSError):
                client.read(512, 1024)
            with suppress(OSError):
                client.close()
            return await asyncio.to_thread(session.process.wait, 20)

    assert asyncio.run(main()) == 1
    assert log.read_text() == message + "\n"

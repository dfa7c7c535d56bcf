# SPDX-License-Identifier: Apache-2.0
"""A command that waits for another's end looks for its nodes afterwards: they may be gone."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from tests.qmp_block.support import execute
from tests.qmp_block.test_overlay import add
from vhostblk.daemon import Daemon

if TYPE_CHECKING:
    from pathlib import Path

    from tests.qmp_block.support import Call


@pytest.mark.parametrize(
    "call",
    [
        ("blockdev-snapshot", {"node": "kept", "overlay": "gone"}),
        ("blockdev-snapshot", {"node": "gone", "overlay": "kept"}),
        (
            "blockdev-snapshot-sync",
            {"node-name": "gone", "snapshot-file": "new", "snapshot-node-name": "new"},
        ),
        ("blockdev-snapshot-internal-sync", {"device": "gone", "name": "s"}),
        ("blockdev-snapshot-delete-internal-sync", {"device": "gone", "name": "s"}),
        (
            "change-backing-file",
            {"device": "gone", "image-node-name": "gone", "backing-file": "other"},
        ),
        ("block-dirty-bitmap-add", {"node": "gone", "name": "b"}),
        ("block_resize", {"node-name": "gone", "size": 1 << 20}),
        ("x-blockdev-change", {"parent": "gone", "node": "kept"}),
        ("x-blockdev-change", {"parent": "kept", "node": "gone"}),
        ("x-vhostblk-blockdev-check", {"node-name": "gone", "repair": True}),
    ],
    ids=lambda call: f"{call[0]}",
)
def test_a_node_that_has_gone_meanwhile_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        async with Daemon() as daemon:
            for name in ("kept", "gone"):
                await add(daemon, tmp_path / name, backing=None)
            async with daemon.graph.changing():
                removal = asyncio.create_task(
                    execute(daemon, "blockdev-del", {"node-name": "gone"})
                )
                waiting = asyncio.create_task(execute(daemon, *call))
                for _ in range(3):
                    await asyncio.sleep(0)
                assert not removal.done()
                assert not waiting.done()
            assert await removal == {"return": {}}
            answer = await waiting
            assert "gone" in answer["desc"], answer
            assert re.search("[Nn]ot |Cannot find|Failed to find", answer["desc"]), answer

    asyncio.run(main())
    assert not (tmp_path / "new").exists()

# SPDX-License-Identifier: Apache-2.0
"""Small hostile images take little memory and storage, whatever is done with them."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from integration.qcow2.hostile_images import IMAGES
from integration.qcow2.tools import opened, qemu_img, qemu_img_status
from vhostblk.block.drivers.qcow2.node import Qcow2Node
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.permissions import Perm

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
#: Memory and storage that all these images together may take.
MEMORY, STORAGE = 64 * MIB, 16 * MIB
READ_ONLY = Perm.CONSISTENT_READ
WRITABLE = Perm.CONSISTENT_READ | Perm.WRITE


async def _use(path: Path, how: str) -> str:
    """Open an image, and check or repair it; return the error, if there is one."""
    members: dict[str, Any] = {"overlap_check": "all"} if how == "overlap" else {}
    try:
        async with opened(path, READ_ONLY if how in ("open", "check") else WRITABLE, **members) as (
            node,
            backend,
        ):
            assert isinstance(node, Qcow2Node)
            if how == "check":
                await node.check_image(repair=False)
            elif how != "open":
                if how == "repair":
                    await node.check_image(repair=True)
                await backend.pwrite_zeroes(0, 65536)
                await backend.flush()
    except (BlockError, OSError) as error:
        return str(error)
    return ""


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(directory: Path, how: str) -> None:
    """Use all images; print how the memory that is taken grows, in bytes, after a sound one."""
    asyncio.run(_use(directory / "sound", how))
    asyncio.run(_use(directory / "sound", how))
    before, grown = _peak(), {}
    for name in IMAGES:
        said = asyncio.run(_use(directory / name, how))
        grown[name] = (_peak() - before, said)
    print(json.dumps(grown))


@pytest.mark.parametrize("how", ["open", "overlap", "check", "repair"])
def test_small_images_take_little_memory_and_storage(tmp_path: Path, how: str) -> None:
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "sound", 1 << 30)
    for name, make in IMAGES.items():
        (tmp_path / name).write_bytes(make())
    code = "from integration.qcow2.test_hostile_images import *; "
    code += f"main(Path({str(tmp_path)!r}), {how!r})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    grown = json.loads(done.stdout)
    assert max(most for most, _ in grown.values()) < MEMORY, grown
    used = {name: (tmp_path / name).stat().st_blocks * 512 for name in IMAGES}
    assert max(used.values()) < STORAGE, used


@pytest.mark.parametrize("name", IMAGES)
def test_qemu_opens_these_images(tmp_path: Path, name: str) -> None:
    """Or else they would show nothing."""
    path = tmp_path / name
    path.write_bytes(IMAGES[name]())
    assert path.stat().st_size < MIB
    status, said = qemu_img_status("info", path)
    assert status == 0, said

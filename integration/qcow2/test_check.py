# SPDX-License-Identifier: Apache-2.0
"""`x-vhostblk-blockdev-check` finds and repairs what `qemu-img check` does."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from integration.qcow2.tools import check, content, qemu_img, qemu_io
from tests.qmp_block.support import ours

if TYPE_CHECKING:
    from pathlib import Path

    from tests.qmp_block.support import Call

SIZE = 4 << 20
CLUSTER = 1 << 16


def _damaged(path: Path) -> bytes:
    """Make an image with clusters that nothing refers to, and others without a refcount."""
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    qemu_io(path, "write -q -P 7 0 1M")
    before = content(path, path.with_suffix(".raw"))
    with path.open("r+b") as file:
        file.seek(2 * CLUSTER)
        counts = bytearray(file.read(CLUSTER))
        counts[2 * 6 : 2 * 9] = bytes(6)  # of data clusters
        counts[2 * 40 : 2 * 42] = b"\0\1\0\1"  # of nothing
        file.seek(2 * CLUSTER)
        file.write(counts)
        file.truncate(43 * CLUSTER)
    return before


def _checks(path: Path, *repairs: bool, **members: Any) -> list[Any]:
    file = {"driver": "file", "filename": str(path)}
    node = {"driver": "qcow2", "node-name": "q", "file": file, **members}
    calls: list[Call] = [("blockdev-add", node)]
    for repair in repairs:
        arguments = {"node-name": "q", "repair": repair} if repair else {"node-name": "q"}
        calls.append(("x-vhostblk-blockdev-check", arguments))
    return asyncio.run(ours(calls))[1:]


def test_damage_is_found_and_repaired(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    before = _damaged(path)
    by_qemu = json.loads(
        qemu_img("check", "--output=json", path, check=False).rpartition("}")[0] + "}"
    )
    first, repaired, again = (each["return"] for each in _checks(path, False, True, False))
    clean = {"filename": str(path), "format": "qcow2", "check-errors": 0}
    # QEMU counts each of the clusters twice: that it has no refcount, and that its flag says 1.
    assert by_qemu["corruptions"] == 6
    assert first == {**clean, "corruptions": 3, "leaks": by_qemu["leaks"]}
    assert repaired == {**clean, "corruptions-fixed": 3, "leaks-fixed": by_qemu["leaks"]}
    assert again == clean
    check(path)
    assert content(path, tmp_path / "raw") == before


def test_a_read_only_image_is_checked_and_not_repaired(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    _damaged(path)
    before = path.read_bytes()
    found, refused = _checks(path, False, True, **{"read-only": True})
    assert found["return"]["leaks"] == 2
    assert refused["desc"] == "Node 'q' is read only"
    assert path.read_bytes() == before


def test_other_formats_say_so(tmp_path: Path) -> None:
    calls: list[Call] = [
        ("blockdev-add", {"driver": "null-co", "node-name": "n"}),
        ("x-vhostblk-blockdev-check", {"node-name": "n"}),
    ]
    answer = asyncio.run(ours(calls))[1]
    assert answer["desc"] == "This image format does not support checks"

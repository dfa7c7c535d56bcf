# SPDX-License-Identifier: Apache-2.0
"""The benchmark of hostile and large images measures all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import hostile_images
from integration.qcow2 import hostile_images as images

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_all_images_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hostile_images, "USES", ("open",))
    monkeypatch.setattr(images, "IMAGES", {"many_snapshots": images.many_snapshots})
    monkeypatch.setattr(hostile_images, "SPARSE", ("many_snapshots",))
    assert hostile_images.main(["--size", "1", "--directory", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "many_snapshots, sparse" in said
    for name in ("create", "check", "delete"):
        assert f"\n{name} " in said

# SPDX-License-Identifier: Apache-2.0
"""Installs the types of this package, as an installer does: with a list of entry points."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from vhostblk.objects import types
from vhostblk.schema import plugins

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENTRY_POINTS = """\
[vhostblk.exports]
test-copy = tests.kinds.copying:CopyingExport
test-reader = tests.kinds.reader.export:ReaderExport
[vhostblk.objects]
test-lamp = tests.kinds.lamp.lamp:Lamp
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the export types and object types."""
    info = tmp_path / "kinds-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kinds\nVersion: 1\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins.OBJECTS, "loaded", {})
    monkeypatch.setattr(plugins.EXPORTS, "loaded", {})
    yield
    types.TYPES.pop("test-lamp", None)
    sys.modules.pop("tests.kinds.lamp.lamp", None)

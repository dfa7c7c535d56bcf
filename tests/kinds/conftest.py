# SPDX-License-Identifier: Apache-2.0
"""A fixture that adds the types of this package, as built-in types or as plug-ins."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.kinds import tables
from vhostblk.objects import types
from vhostblk.schema import plugins
from vhostblk.schema.export import EXPORT_TYPES
from vhostblk.schema.object import OBJECT_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["table", "entry point"])
def installed(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Add the export types and object types, in one of both ways."""
    if request.param == "table":
        for name, export_type in tables.EXPORT_TYPES.items():
            monkeypatch.setitem(EXPORT_TYPES, name, export_type)
        for name, object_type in tables.OBJECT_TYPES.items():
            monkeypatch.setitem(OBJECT_TYPES, name, object_type)
    else:
        _install(tmp_path / "kinds-1.dist-info")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(plugins.OBJECTS, "loaded", {})
        monkeypatch.setattr(plugins.EXPORTS, "loaded", {})
    yield
    types.TYPES.pop("test-lamp", None)
    sys.modules.pop("tests.kinds.lamp.lamp", None)


def _install(info: Path) -> None:
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kinds\nVersion: 1\n")
    (info / "entry_points.txt").write_text(tables.ENTRY_POINTS)

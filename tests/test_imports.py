# SPDX-License-Identifier: Apache-2.0
"""Modules are imported in a thread, and the event loop goes on."""

from __future__ import annotations

import asyncio
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from vhostblk.imports import import_modules

if TYPE_CHECKING:
    from pathlib import Path


def test_the_loop_turns_while_modules_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module waits for the loop; imported on the loop's thread, it would wait for ever."""
    (tmp_path / "slowly_imported.py").write_text(
        "import sys\nsys.begun()\nassert sys.released.wait(20)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "released", threading.Event(), raising=False)

    async def main() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        tell = partial(loop.call_soon_threadsafe, begun.set)
        monkeypatch.setattr(sys, "begun", tell, raising=False)
        first = asyncio.create_task(import_modules("slowly_imported"))
        second = asyncio.create_task(import_modules("slowly_imported"))
        await asyncio.wait_for(begun.wait(), 20)
        assert not first.done()
        assert not second.done()
        sys.released.set()  # type: ignore[attr-defined]
        await asyncio.gather(first, second)
        await import_modules("slowly_imported")

    asyncio.run(main())
    del sys.modules["slowly_imported"]


def test_what_is_missing_is_told() -> None:
    with pytest.raises(ModuleNotFoundError):
        asyncio.run(import_modules("json", "vhostblk.no_such_module"))

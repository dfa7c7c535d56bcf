# SPDX-License-Identifier: Apache-2.0
"""The front-end imports nothing of vhostblk, and its layouts say the same as vhostblk's.

A wrong number in one place then shows, in the tests here and in every test that uses the front-end.
"""

from __future__ import annotations

import ast
from enum import Enum
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.frontend import barrier
from tests.frontend.layout import vhost_user, virtio_blk, virtqueue
from vhostblk.vhost_user import layout as our_vhost_user
from vhostblk.virtio_blk import features as our_features
from vhostblk.virtio_blk import layout as our_virtio_blk
from vhostblk.virtqueue import config as our_config
from vhostblk.virtqueue import layout as our_virtqueue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

TOP = Path(__file__).parents[2]
FRONTEND = [
    path for path in sorted(Path(__file__).parent.rglob("*.py")) if path.name[:5] != "test_"
]

#: For each module of layouts, the modules of vhostblk with the same facts.
PAIRS: list[tuple[ModuleType, list[ModuleType]]] = [
    (vhost_user, [our_vhost_user, our_config]),
    (virtqueue, [our_virtqueue]),
    (virtio_blk, [our_virtio_blk, our_features]),
]


def imported_by(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports or names anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and str(node.value).startswith("vhostblk."):
            yield str(node.value)


@pytest.mark.parametrize("path", FRONTEND, ids=lambda path: path.stem)
def test_the_frontend_imports_nothing_of_vhostblk(path: Path) -> None:
    """The modules of `tests` that it imports don't import vhostblk either."""
    seen, todo = set(), [path]
    while todo:
        current = todo.pop()
        seen.add(current)
        for name in imported_by(current):
            assert name.partition(".")[0] != "vhostblk", f"{current}: {name}"
            candidates = [TOP.joinpath(*name.split(".")).with_suffix(".py")]
            candidates.append(TOP.joinpath(*name.split("."), "__init__.py"))
            todo += [each for each in candidates if each.exists() and each not in seen]


def facts(module: ModuleType) -> dict[str, Any]:
    """Return the numbers, structures and enumerations in a module of layouts."""
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if isinstance(value, Struct):
            found[name] = value.format
        elif isinstance(value, type) and issubclass(value, Enum):
            found |= {f"{name}.{member.name}": member.value for member in value}
        elif isinstance(value, int | np.dtype):
            found[name] = value
    return found


@pytest.mark.parametrize(
    ("frontend", "ours"), PAIRS, ids=lambda each: getattr(each, "__name__", "")
)
def test_the_layouts_say_the_same(frontend: ModuleType, ours: list[ModuleType]) -> None:
    known = {name: value for module in ours for name, value in facts(module).items()}
    stated = facts(frontend)
    compared = stated.keys() & known.keys()
    assert {name: stated[name] for name in compared} == {name: known[name] for name in compared}
    # Facts without a name in vhostblk, or with another name.
    assert stated.keys() - compared <= {"INFLIGHT_BYTES"}


@pytest.mark.parametrize("size", [1, 2, 128, 32768])
@pytest.mark.parametrize("name", ["desc_bytes", "avail_bytes", "used_bytes"])
def test_the_parts_of_a_ring_are_as_long(name: str, size: int) -> None:
    assert getattr(virtqueue, name)(size) == getattr(our_virtqueue, name)(size)


def test_the_payloads_of_memory_and_of_requests_in_flight() -> None:
    region = vhost_user.MemoryRegion(1, 2, 3, 4, fd=-1)
    assert region.pack() == our_vhost_user.MEMORY_REGION.pack(1, 2, 3, 4)
    assert region.pack_single() == our_vhost_user.SINGLE_REGION.pack(0, 1, 2, 3, 4)
    area = vhost_user.InflightArea(1, 2, 3, 4, fd=5)
    assert area.pack() == our_vhost_user.INFLIGHT.pack(1, 2, 3, 4) + bytes(4)
    assert vhost_user.INFLIGHT_BYTES == our_vhost_user.INFLIGHT_PADDED_SIZE
    assert vhost_user.InflightArea.unpack(area.pack(), 5) == area


def test_the_barrier_of_other_processors_can_be_called() -> None:
    barrier.libatomic_fence()()

# SPDX-License-Identifier: Apache-2.0
"""Memory ordering between the driver's CPU and ours.

Python has no barriers. If the compiled engine exists, its atomics are used. Without it, only x86-64
is supported. There loads are not reordered with loads, nor stores with stores, so plain accesses
have acquire and release semantics. Only a load may be executed before an earlier store. A locked
instruction, such as the one in a `threading.Lock`, prevents this.
"""

from __future__ import annotations

import platform
import threading
from typing import TYPE_CHECKING

from vhostblk.block.io.iovec import view_memory
from vhostblk.engine import load
from vhostblk.errors import VhostblkError

if TYPE_CHECKING:
    from collections.abc import Callable

_lock = threading.Lock()


def _plain_load_u16(address: int) -> int:
    return int.from_bytes(view_memory(address, 2), "little")


def _plain_store_u16(address: int, value: int) -> None:
    view_memory(address, 2)[:] = value.to_bytes(2, "little")


def _locked_instruction() -> None:
    with _lock:
        pass


load_acquire_u16: Callable[[int], int]
store_release_u16: Callable[[int, int], None]
fence: Callable[[], None]

_engine = load()
if _engine is not None:
    load_acquire_u16 = _engine.lib.vb_load_acquire_u16
    store_release_u16 = _engine.lib.vb_store_release_u16
    fence = _engine.lib.vb_fence
elif platform.machine() in ("x86_64", "AMD64"):
    load_acquire_u16 = _plain_load_u16
    store_release_u16 = _plain_store_u16
    fence = _locked_instruction
else:
    raise VhostblkError(
        f"virtqueues on {platform.machine()} need the compiled engine for their memory barriers"
    )

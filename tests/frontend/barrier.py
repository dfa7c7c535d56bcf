# SPDX-License-Identifier: Apache-2.0
"""A full memory barrier, for the rings that driver and device share (VIRTIO 1.3, 2.7.13).

x86-64 keeps all orders but one: a load may overtake an earlier store. Any locked instruction
prevents that, and the cheapest in Python is in `threading.Lock`. On other processors libatomic's
fence is called.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: memory_order_seq_cst of C11's <stdatomic.h>.
_SEQ_CST = 5

_lock = threading.Lock()


def _locked_instruction() -> None:
    with _lock:
        pass


def libatomic_fence() -> Callable[[], None]:
    """Return a barrier for any processor; it needs GCC's libatomic.so.1."""
    function = ctypes.CDLL("libatomic.so.1").atomic_thread_fence

    def fence() -> None:
        function(_SEQ_CST)

    return fence


fence = _locked_instruction if platform.machine() in ("x86_64", "AMD64") else libatomic_fence()

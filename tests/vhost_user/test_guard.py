# SPDX-License-Identifier: Apache-2.0
"""SIGBUS without the engine, each case in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

_BEGIN = """
import mmap, os, signal, threading
import numpy as np
from vhostblk.block.io.iovec import view_memory
from vhostblk.virtqueue.mapping import LossSignal, Mapping

def fresh():
    fd = os.memfd_create("m")
    os.truncate(fd, 1 << 20)
    loss = LossSignal()
    mapping = Mapping(fd, 0, 1 << 20, loss=loss)
    memory = np.frombuffer(view_memory(mapping.address, 1 << 20), np.uint8)
    memory[:] = 7
    return fd, loss, mapping, memory

def write(memory, where):
    memory[where] = 0
"""

#: Ways to touch memory: through copies, with the GIL and without it, on other threads.
_ACCESSES = """
every = np.arange(0, 1 << 20, 8)
for access in (
    lambda memory: bytes(memory),
    lambda memory: memory[every],
    lambda memory: write(memory, slice(None)),
    lambda memory: write(memory, every),
    lambda memory: memory.view("<u8").sum(),
    lambda memory: bytes(view_memory(memory.ctypes.data + 5, 5000)),
    lambda memory: threading.Thread(target=bytes, args=(memory,)).start(),
):
    fd, loss, mapping, memory = fresh()
    os.truncate(fd, 4096)
    access(memory)
    while threading.active_count() > 1:
        pass
    assert os.eventfd_read(loss.fd) == 1
    assert not memory[1 << 16 :].any()
    os.truncate(fd, 0)
    bytes(memory)
"""

_NOT_GUARDED = """
fd, loss, mapping, memory = fresh()
other = os.memfd_create("other")
os.truncate(other, 4096)
view = mmap.mmap(other, 4096)
os.truncate(other, 0)
view[0]
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _BEGIN + script],
        env={**os.environ, "VHOSTBLK_ENGINE": "off", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_lost_pages_are_zeroes_and_told_once() -> None:
    done = run(_ACCESSES)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("harm", [_NOT_GUARDED, "fresh()\nos.kill(os.getpid(), signal.SIGBUS)"])
def test_other_causes_of_the_signal_end_the_process(harm: str) -> None:
    assert run(harm).returncode == -signal.SIGBUS

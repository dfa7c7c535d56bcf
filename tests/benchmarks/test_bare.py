# SPDX-License-Identifier: Apache-2.0
"""The bare loop of system calls."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from benchmarks.loadgen.bare import bare_rate

BLOCK = 4096


def test_random_writes_reach_every_block(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8 * BLOCK))
    assert bare_rate(path, seconds=0.01, buffers=2, write=True) > 0
    assert path.read_bytes() == b"\x5a" * (8 * BLOCK)


def test_reads_leave_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8 * BLOCK))
    assert bare_rate(path, seconds=0.01, sequential=True) > 0
    assert path.read_bytes() == bytes(8 * BLOCK)


def test_a_failing_call_is_an_error() -> None:
    with pytest.raises(OSError, match="/dev/full: call 0") as caught:
        bare_rate(Path("/dev/full"), seconds=0.01, write=True)
    assert caught.value.errno == errno.ENOSPC

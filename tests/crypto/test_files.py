# SPDX-License-Identifier: Apache-2.0
"""Reading secret files, and the memory that they are read into."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

import pytest

from vhostblk.crypto import files
from vhostblk.crypto.secret_bytes import SecretBytes


def read(path: Path) -> bytes:
    with files.read_secret(str(path)) as secret, secret.view as view:
        return bytes(view)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    for content in (b"", b"x", bytes(100_000), b"y" * files.MAX_SIZE):
        path.write_bytes(content)
        assert read(path) == content


def test_a_file_without_end() -> None:
    with pytest.raises(OSError, match="File too large"):
        files.read_secret("/dev/zero")


def test_a_pipe_that_somebody_writes_into_later(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def write() -> None:
        with path.open("wb", buffering=0) as pipe:  # waits for the reader
            pipe.write(b"half")
            pipe.write(b" a secret")

    writer = threading.Thread(target=write)
    writer.start()
    assert read(path) == b"half a secret"
    writer.join()


def test_a_pipe_that_nobody_writes_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    with pytest.raises(OSError, match="timed out"):
        files.read_secret(str(path))


@pytest.mark.parametrize(
    ("mode", "secret", "said"),
    [
        (0o600, True, ""),
        (0o640, True, ""),
        (0o644, True, "other users can read this secret file"),
        (0o644, False, ""),
        (0o602, False, "other users can change this file"),
        (0o602, True, "other users can change this file"),
    ],
)
def test_files_that_are_too_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, secret: bool, said: str
) -> None:
    path = tmp_path / "key.pem"
    path.touch()
    path.chmod(mode)
    files.warn_if_open(str(path), secret=secret)
    assert [record.getMessage() for record in caplog.records] == (
        [f"warning: {path}: {said}"] if said else []
    )


def test_memory_is_zeroed_and_not_dumped() -> None:
    secret = SecretBytes(b"a secret value")
    seen = secret.terminated
    assert bytes(seen) == b"a secret value\0"
    assert repr(secret) == "<secret>"
    secret.wipe()
    assert bytes(seen) == bytes(15)
    secret.wipe()


def test_flags_of_the_memory() -> None:
    """`dd` (no core dumps) and `dc` (no copies in children), as `proc(5)` calls them."""
    length = 7 * 4096 - 1
    secret = SecretBytes(length=length)
    address = _address(secret)
    found = [flags for start, flags in _mappings() if start == address]
    assert found
    assert {"dd", "dc"} <= set(found[0])
    secret.wipe()


def _address(secret: SecretBytes) -> int:
    with secret.terminated as view:
        return ctypes.addressof(ctypes.c_char.from_buffer(view))


def _mappings() -> list[tuple[int, list[str]]]:
    found: list[tuple[int, list[str]]] = []
    start = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("VmFlags:"):
            found.append((start, line.split()[1:]))
        elif "-" in line.split()[0]:
            start = int(line.partition("-")[0], 16)
    return found

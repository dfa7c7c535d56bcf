# SPDX-License-Identifier: Apache-2.0
"""Opening files: messages, auto-read-only, and what the host can do."""

# ruff: noqa: ASYNC240 -- looking at the file from outside is the test

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.block.file.support import MIB, close, open_error, open_file
from tests.block.support import RW, read_bytes, run, write_bytes
from tests.descriptors import open_fds
from vhostblk.block.drivers import direct
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.permissions import Perm

if TYPE_CHECKING:
    from pathlib import Path


def test_messages_of_opening(tmp_path: Path, image: Path) -> None:
    async def main() -> None:
        missing = str(tmp_path / "missing")
        fifo = str(tmp_path / "fifo")
        os.mkfifo(fifo)
        for members, message in (
            (
                {"driver": "file", "filename": missing},
                f"Could not open '{missing}': No such file or directory",
            ),
            (
                {"driver": "file", "filename": str(tmp_path)},
                f"Could not open '{tmp_path}': Is a directory",
            ),
            (
                {"driver": "file", "filename": fifo, "read_only": True},
                f"'file' driver requires '{fifo}' to be a regular file",
            ),
            (
                {"driver": "file", "filename": "/dev/null"},
                "'file' driver requires '/dev/null' to be a regular file",
            ),
            (
                {"driver": "host_device", "filename": str(image)},
                f"'host_device' driver requires '{image}' to be either a character or block device",
            ),
            (
                {"driver": "file", "filename": str(image), "aio": "native"},
                (
                    "aio=native was specified, but it requires cache.direct=on, which was not "
                    "specified."
                ),
            ),
            ({"driver": "file", "filename": "a\0b"}, "Could not open 'a\0b': embedded null byte"),
        ):
            assert await open_error(**members) == message

    before = open_fds()
    run(main)
    assert open_fds() <= before


def test_auto_read_only_reopens_for_the_first_writer(image: Path, aio: str) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(
            image, Perm.CONSISTENT_READ, aio=aio, auto_read_only=True
        )
        fd = node.fd
        assert flags_of(fd) == os.O_RDONLY
        writer = BlockBackend("writer", RW)
        writer.attach(graph, node)
        assert (node.fd, flags_of(fd)) == (fd, os.O_RDWR)
        await write_bytes(writer, 0, b"hello")
        assert image.read_bytes()[:5] == b"hello"
        second = BlockBackend("second", RW)
        second.attach(graph, node)
        await second.detach()
        assert flags_of(fd) == os.O_RDWR
        await writer.detach()
        assert (node.fd, flags_of(fd)) == (fd, os.O_RDONLY)
        assert await read_bytes(backend, 0, 5) == b"hello"
        writer.attach(graph, node)  # and once more
        await write_bytes(writer, 0, b"again")
        await writer.detach()
        await close(graph, backend)
        assert image.read_bytes()[:5] == b"again"

    run(main)


def test_without_auto_read_only_the_file_stays_open_for_writing(image: Path) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(image, Perm.CONSISTENT_READ)
        assert flags_of(node.fd) == os.O_RDWR
        writer = BlockBackend("writer", RW)
        writer.attach(graph, node)
        await writer.detach()
        assert flags_of(node.fd) == os.O_RDWR
        await close(graph, backend)

    run(main)


def test_a_writer_leaves_a_file_that_was_replaced(image: Path) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(image, Perm.CONSISTENT_READ, auto_read_only=True)
        writer = BlockBackend("writer", RW)
        writer.attach(graph, node)
        image.rename(image.with_suffix(".old"))
        image.write_bytes(bytes(MIB))
        await writer.detach()
        assert flags_of(node.fd) == os.O_RDWR
        assert await read_bytes(backend, 0, 5) == image.with_suffix(".old").read_bytes()[:5]
        await close(graph, backend)

    run(main)


def test_a_replaced_file_is_not_reopened(image: Path) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(image, Perm.CONSISTENT_READ, auto_read_only=True)
        image.rename(image.with_suffix(".old"))
        image.write_bytes(bytes(MIB))
        writer = BlockBackend("writer", RW)
        with pytest.raises(BlockError, match="has been replaced"):
            writer.attach(graph, node)
        assert flags_of(node.fd) == os.O_RDONLY
        await close(graph, backend)

    run(main)


def flags_of(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE


def test_io_uring_forbidden(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VHOSTBLK_IO_URING", "off")
    monkeypatch.setattr("vhostblk.block.aio.engines._fallback_logged", False)

    async def main() -> None:
        for _ in range(2):
            graph, node, backend = await open_file(image)
            assert node._aio.kind.value == "threads"
            await close(graph, backend)
        error = await open_error(driver="file", filename=str(image), aio="io_uring")
        assert error.startswith("aio=io_uring: io_uring is not available: ")

    run(main)
    assert len(caplog.records) == 1


def test_alignment_is_found_by_reading_where_the_kernel_does_not_tell(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.open(image, os.O_RDONLY | os.O_DIRECT)
    told = direct.probe_alignment(fd)
    monkeypatch.setattr(direct, "_ask_statx", lambda fd: 0)
    assert direct.probe_alignment(fd) == told
    os.close(fd)

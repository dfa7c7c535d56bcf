# SPDX-License-Identifier: Apache-2.0
"""What each request type does to the disk."""

from __future__ import annotations

import asyncio
import errno
import struct

import pytest

from tests.virtio_blk.support import HandNode, attach, make_device
from vhostblk.block.io.iovec import IoVec
from vhostblk.virtio_blk.device import status_of
from vhostblk.virtio_blk.discard import RefusedError
from vhostblk.virtio_blk.layout import RequestType, Status


def execute(
    kind: int, send: bytes = b"", *, want: int = 0, writable: bool = True, block: int = 512
) -> tuple[int, bytes, list[str]]:
    """Run one request; return the bytes written, the buffer and what the disk was asked."""

    async def run() -> tuple[int, bytes, list[str]]:
        node = HandNode()
        device = make_device(attach(node, writable=writable), writable=writable, block=block)
        buffer = bytearray(send or b"\xee" * want)
        written = await device.execute(kind, IoVec.from_buffers([buffer]))
        return written, bytes(buffer), node.log

    return asyncio.run(run())


def refusal(kind: int, send: bytes = b"", *, writable: bool = True) -> Status:
    with pytest.raises(RefusedError) as caught:
        execute(kind, send, writable=writable)
    return caught.value.status


def segment(sector: int, sectors: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, sectors, flags)


def test_a_driver_that_is_refused_gets_errors_and_nothing_else() -> None:
    async def run() -> None:
        node = HandNode()
        device = make_device(attach(node), refused=True)
        assert not device.writable
        for kind in (RequestType.FLUSH, RequestType.WRITE_ZEROES, 99):
            with pytest.raises(RefusedError) as caught:
                await device.execute(kind, IoVec.from_buffers([bytearray(16)]))
            assert caught.value.status == Status.IOERR
        with pytest.raises(RefusedError):
            await device.preadv(0, IoVec.from_buffers([bytearray(512)]))
        assert node.log == []

    asyncio.run(run())


def test_flush() -> None:
    assert execute(RequestType.FLUSH) == (0, b"", ["flush"])


def test_get_id() -> None:
    assert execute(RequestType.GET_ID, want=20)[:2] == (20, b"serial".ljust(20, b"\0"))


@pytest.mark.parametrize("size", [0, 1, 6, 19])
def test_get_id_into_a_short_buffer(size: int) -> None:
    assert execute(RequestType.GET_ID, want=size)[:2] == (
        size,
        b"serial".ljust(20, b"\0")[:size],
    )


def test_get_id_into_a_long_buffer_leaves_the_rest() -> None:
    written, buffer, _ = execute(RequestType.GET_ID, want=512)
    assert written == 20
    assert buffer == b"serial".ljust(20, b"\0") + b"\xee" * 492


def test_discard() -> None:
    payload = segment(0, 8) + segment(64, 1)
    assert execute(RequestType.DISCARD, payload)[2] == ["discard 0+4096", "discard 32768+512"]


def test_write_zeroes() -> None:
    payload = segment(1, 1) + segment(8, 1, 1)
    assert execute(RequestType.WRITE_ZEROES, payload)[2] == ["zero 512+512", "zero 4096+512 unmap"]


@pytest.mark.parametrize("kind", [RequestType.DISCARD, RequestType.WRITE_ZEROES])
def test_read_only_device_deallocates_nothing(kind: RequestType) -> None:
    assert refusal(kind, segment(0, 1), writable=False) == Status.IOERR


def test_payload_longer_than_any_is_not_even_read() -> None:
    assert refusal(RequestType.DISCARD, segment(0, 1) * 33) == Status.IOERR


@pytest.mark.parametrize("kind", [2, 3, 5, 10, 14, 0x1234, 0xFFFF_FFFF])
def test_unknown_types_are_unsupported(kind: int) -> None:
    assert refusal(kind) == Status.UNSUPP


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(errno.EIO, ""), Status.IOERR),
        (OSError(errno.ENOSPC, ""), Status.IOERR),
        (OSError(errno.ENOTSUP, ""), Status.UNSUPP),
        (RefusedError(Status.UNSUPP), Status.UNSUPP),
        (ZeroDivisionError(), Status.IOERR),
    ],
)
def test_failures_have_a_status(error: Exception, status: Status) -> None:
    assert status_of(error) is status

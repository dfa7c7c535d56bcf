# SPDX-License-Identifier: Apache-2.0
"""Requests to a vhost-user-blk export, with outcomes as text."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tests.differential.normal import runs_of
from tests.frontend.blk import BlkDriver, BlkRequest, range_segments
from tests.frontend.connection import Connection, FrontendError
from tests.frontend.layout.virtio_blk import (
    CONFIG,
    ID_BYTES,
    WRITE_ZEROES_FLAG_UNMAP,
    RequestType,
    Status,
)
from tests.frontend.memory import MIB, Memory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.differential.script import Request

#: Seconds to wait for actions that take milliseconds on an idle machine.
PATIENCE = 30.0
_MEMORY = ((0, 4 * MIB), (1 << 32, 60 * MIB))
#: `dump` reads at most this many bytes.
_LONGEST_DUMP = 64 * MIB
#: If data has more runs of equal bytes than this, only its hash is shown.
_MOST_RUNS = 64
_TYPES = {
    "read": RequestType.IN,
    "write": RequestType.OUT,
    "zero": RequestType.WRITE_ZEROES,
    "discard": RequestType.DISCARD,
    "flush": RequestType.FLUSH,
    "id": RequestType.GET_ID,
}


class Disk:
    """A connected front-end.

    Raises FrontendError if the back-end disconnects, and CompletionTimeoutError if it hangs.
    """

    def __init__(self, path: Path) -> None:
        """Connect; raises OSError if no process listens."""
        self._memory = Memory(_MEMORY)
        try:
            self._connection = Connection.connect(path, PATIENCE)
            self._driver = BlkDriver(self._connection, self._memory, timeout=PATIENCE)
            # QEMU's daemon closes a connection without a channel when it has a notification for it.
            self._channel = self._connection.open_channel()
        except BaseException:
            self._memory.close()
            raise

    def close(self) -> None:
        """Disconnect."""
        self._channel.close()
        self._driver.close()
        self._memory.close()

    def run(self, requests: Sequence[Request]) -> list[str]:
        """Run requests concurrently; return a line for each."""
        match requests[0].what:
            case "connect":
                return ["connected"]
            case "size":
                return [f"{self._driver.capacity} bytes"]
            case "dump":
                return self._dump()
            case "cache":
                self._set_cache(requests[0].on)
                return ["done"]
        submitted = [self._submit(request) for request in requests]
        answers = {id(done): data for done, data in self._driver.drain()}
        return [
            _told(request, done, answers[id(done)])
            for request, done in zip(requests, submitted, strict=True)
        ]

    def _submit(self, request: Request) -> BlkRequest:
        data_out: list[bytes] = []
        data_in: list[int] = []
        match request.what:
            case "read":
                data_in = [request.length]
            case "write":
                data_out = [bytes([request.byte]) * request.length]
            case "zero" | "discard":
                flags = WRITE_ZEROES_FLAG_UNMAP if request.unmap else 0
                data_out = [range_segments([(request.offset, request.length)], flags)]
            case "id":
                data_in = [ID_BYTES]
        place = request.offset if request.what in ("read", "write") else 0
        return self._driver.submit(_TYPES[request.what], place, data_out=data_out, data_in=data_in)

    def _dump(self) -> list[str]:
        size = min(self._driver.capacity, _LONGEST_DUMP)
        data = bytearray()
        for offset in range(0, size, MIB):
            length = min(MIB, size - offset)
            request = self._driver.submit(RequestType.IN, offset, data_in=[length])
            ((_, part),) = self._driver.drain()
            if request.status != Status.OK:
                return [*_shown(data), f"{offset:#x}: {_status(request)}"]
            data += part
        return _shown(data)

    def _set_cache(self, on: bool) -> None:
        assert CONFIG.fields is not None
        self._connection.set_config(CONFIG.fields["writeback"][1], bytes([on]))


def _told(request: Request, done: BlkRequest, data: bytes) -> str:
    if done.status != Status.OK:
        return _status(done)
    if request.what == "id":
        return repr(data.rstrip(b"\0"))
    return "; ".join(_shown(data, request.offset)) if request.what == "read" else "done"


def _status(request: BlkRequest) -> str:
    try:
        return Status(request.status).name
    except ValueError:
        return f"status {request.status}"


def _shown(data: bytes | bytearray, offset: int = 0) -> list[str]:
    """Return a description of data: offset, length and value of each run of equal bytes."""
    found = runs_of(data)
    if len(found) > _MOST_RUNS:
        return [f"{len(data):#x} bytes, {len(found)} runs: {hashlib.sha256(data).hexdigest()}"]
    lines = []
    for length, byte in found:
        lines.append(f"{offset:#x}+{length:#x} {byte:#04x}")
        offset += length
    return lines


__all__ = ["Disk", "FrontendError"]
